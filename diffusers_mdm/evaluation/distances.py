# SPDX-License-Identifier: Apache-2.0
"""Distances between the features of generated and of real images, each taken as a set.

Fréchet distance and KID come from torchmetrics. Every distance needs a minimum number of images; with fewer, an error
names that number. All but the kernel distances are biased, and the bias depends on the number of images, so a distance
between sets of 100 cannot be compared with one between sets of 1000.
"""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torchmetrics.image.fid import FrechetInceptionDistance
from torchmetrics.image.kid import KernelInceptionDistance

MIN_FRECHET = 50  # images in each set
KID_SUBSETS, KID_SUBSET_SIZE, MIN_KID = 100, 1000, 50
CMMD_BANDWIDTH, CMMD_SCALE, MIN_CMMD = 10.0, 1000.0, 50
NEIGHBOURS = 3  # number of neighbours for precision and recall


@dataclass(frozen=True)
class KernelDistance:
    """KID as the mean over subsets, and the standard error of this mean."""

    mean: float
    error: float


class GivenFeatures(torch.nn.Module):
    """A network for torchmetrics that returns features which are already computed."""

    def __init__(self, num_features: int):
        super().__init__()
        self.num_features = num_features

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        """Return the features themselves."""
        return features


def frechet_distance(drawn: torch.Tensor, real: torch.Tensor) -> float:
    """Compute the Fréchet distance of Gaussians fitted to the features (FID if these are from Inception-v3).

    ‖μ₁ − μ₂‖² + tr(Σ₁ + Σ₂ − 2 (Σ₁ Σ₂)^½), Heusel et al. 2017, equation 6.

    Args:
        drawn: `(N, D)`.
        real: `(M, D)`.

    Raises:
        ValueError: fewer than 50 images in a set, or features of different lengths.
    """
    check_sets(drawn, real, MIN_FRECHET, "The Fréchet distance")
    drawn, real = drawn.cpu().double(), real.cpu().double()
    if min(len(drawn), len(real)) < drawn.shape[1]:
        return _frechet_distance_of_few(*sorted((drawn, real), key=len))
    with without_notices():
        metric = FrechetInceptionDistance(GivenFeatures(drawn.shape[1]))
        metric.update(real, real=True)
        metric.update(drawn, real=False)
        return float(metric.compute())


def _frechet_distance_of_few(few: torch.Tensor, others: torch.Tensor) -> float:
    """Compute the Fréchet distance to a set of fewer images than features, in a fraction of the time.

    With the centred features X₁ of the few images, Σ₁ = X₁ᵀ X₁ / (N - 1), and Σ₁ Σ₂ has the same eigenvalues, besides
    0, as the N x N matrix X₁ Σ₂ X₁ᵀ / (N - 1), which is symmetric.
    """
    centred, covariance = few - few.mean(0), torch.cov(others.T)
    eigenvalues = torch.linalg.eigvalsh(centred @ covariance @ centred.T / (len(few) - 1))
    spread = few.var(0).sum() + covariance.trace() - 2 * eigenvalues.clamp(min=0).sqrt().sum()
    return float((few.mean(0) - others.mean(0)).square().sum() + spread)


def kernel_distance(drawn: torch.Tensor, real: torch.Tensor, seed: int = 0) -> KernelDistance:
    """Compute KID (Bińkowski et al. 2018): the unbiased squared MMD with a cubic kernel, over random subsets.

    Args:
        drawn: `(N, D)`.
        real: `(M, D)`.
        seed: seed of the choice of subsets.

    Raises:
        ValueError: fewer than 50 images in a set, or features of different lengths.
    """
    check_sets(drawn, real, MIN_KID, "KID")
    size = min(KID_SUBSET_SIZE, len(drawn), len(real))
    with torch.random.fork_rng(devices=[]), without_notices():
        torch.manual_seed(seed)
        metric = KernelInceptionDistance(GivenFeatures(drawn.shape[1]), subsets=KID_SUBSETS, subset_size=size)
        metric.update(real.float(), real=True)
        metric.update(drawn.float(), real=False)
        mean, deviation = metric.compute()
    return KernelDistance(float(mean), float(deviation) / KID_SUBSETS**0.5)


def kernel_distance_of_all(drawn: torch.Tensor, real: torch.Tensor) -> float:
    """Compute what KID estimates from all images at once, without random subsets.

    It is unbiased for any numbers of images, so means over several small sets can be compared.

    Args:
        drawn: `(N, D)`.
        real: `(M, D)`.

    Raises:
        ValueError: fewer than two images in a set, or features of different lengths.
    """
    check_sets(drawn, real, 2, "The kernel distance")
    first, second = drawn.cpu().double(), real.cpu().double()

    def kernel(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        return (a @ b.T / a.shape[1] + 1) ** 3

    def mean_of_pairs(features: torch.Tensor) -> torch.Tensor:
        values, count = kernel(features, features), len(features)
        return (values.sum() - values.trace()) / (count * (count - 1))

    return float(mean_of_pairs(first) + mean_of_pairs(second) - 2 * kernel(first, second).mean())


def clip_discrepancy(drawn: torch.Tensor, real: torch.Tensor) -> float:
    """Compute CMMD (Jayasumana et al. 2024): 1000 times the squared MMD of CLIP's unit vectors, Gaussian kernel of
    width 10.

    Args:
        drawn: `(N, D)`.
        real: `(M, D)`.

    Raises:
        ValueError: fewer than 50 images in a set, or features of different lengths.
    """
    check_sets(drawn, real, MIN_CMMD, "CMMD")
    first, second = (torch.nn.functional.normalize(side.cpu().double(), dim=1) for side in (drawn, real))

    def kernel_mean(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        return torch.exp(-torch.cdist(a, b).square() / (2 * CMMD_BANDWIDTH**2)).mean()

    total = kernel_mean(first, first) + kernel_mean(second, second) - 2 * kernel_mean(first, second)
    return float(CMMD_SCALE * total)


def precision_and_recall(drawn: torch.Tensor, real: torch.Tensor) -> tuple[float, float]:
    """Compute improved precision and recall (Kynkäänniemi et al. 2019), with three neighbours.

    Precision is the fraction of generated images that are closer to some real image than that image's third neighbour
    among the real ones; recall is the same with the two sets exchanged.

    Args:
        drawn: `(N, D)`.
        real: `(M, D)`.

    Raises:
        ValueError: fewer than five images in a set, or features of different lengths.
    """
    check_sets(drawn, real, NEIGHBOURS + 2, "Precision and recall")
    between = torch.cdist(drawn.cpu().double(), real.cpu().double())
    precision = (between <= radii(real)[None]).any(1).cpu().double().mean()
    recall = (between <= radii(drawn)[:, None]).any(0).cpu().double().mean()
    return float(precision), float(recall)


def radii(features: torch.Tensor) -> torch.Tensor:
    """Return the distance `(N,)` of each of `(N, D)` to its third neighbour in the same set."""
    distances = torch.cdist(features.cpu().double(), features.cpu().double())
    return distances.kthvalue(NEIGHBOURS + 1, dim=1).values  # the nearest one is the image itself


def check_sets(drawn: torch.Tensor, real: torch.Tensor, least: int, name: str) -> None:
    """Check that the sets are large enough and hold features of the same length.

    Raises:
        ValueError: names the set and what is needed.
    """
    if drawn.shape[1:] != real.shape[1:]:
        raise ValueError(
            f"{name} can only compare features of the same kind; those of the generated images have {drawn.shape[-1]} "
            f"numbers each, those of the real images {real.shape[-1]}."
        )
    if min(len(drawn), len(real)) < least:
        raise ValueError(
            f"{name} can only be computed with at least {least} images in each set; there are {len(drawn)} "
            f"generated and {len(real)} "
            f"real ones."
        )


@contextlib.contextmanager
def without_notices() -> Iterator[None]:
    """Suppress torchmetrics' warning about the memory that stored features take, which it prints every time."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*will save all extracted features in buffer.*")
        yield
