# SPDX-License-Identifier: Apache-2.0
"""Measures of drawn images that need no network, so that they take seconds on one core.

The features of Inception-v3 take half a second for each image there, and know nothing of images of 32 pixels; the
Fréchet distance is also biased for the few hundred images that can be drawn. The sliced Wasserstein distance between
patches (Karras et al. 2018, section 5) compares structure at every scale, with 128 patches of each image.
"""

from __future__ import annotations

from collections.abc import Sequence
from operator import eq

import torch
import torch.nn.functional as F

from diffusers_mdm.evaluation.retrieval import nearest

PATCH, PATCHES_PER_IMAGE, DIRECTIONS, SMALLEST = 7, 128, 128, 16


def laplacian_pyramid(images: torch.Tensor) -> list[torch.Tensor]:
    """Return the detail of every scale of images `(B, C, S, S)`, finest first, and last the images of 16 pixels."""
    details = []
    while images.shape[-1] > SMALLEST:
        small = F.avg_pool2d(images, 2)
        details.append(images - F.interpolate(small, scale_factor=2, mode="bilinear", align_corners=False))
        images = small
    return [*details, images]


def patches(images: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """Cut `PATCHES_PER_IMAGE` patches at random places out of every image: `(B * n, C * 7 * 7)`."""
    all_patches = F.unfold(images, PATCH).transpose(1, 2)
    places = torch.randint(all_patches.shape[1], (len(images), PATCHES_PER_IMAGE), generator=generator)
    return torch.gather(all_patches, 1, places[..., None].expand(-1, -1, all_patches.shape[2])).flatten(0, 1)


def sliced_wasserstein(drawn: torch.Tensor, real: torch.Tensor, seed: int = 0) -> list[float]:
    """Return the sliced Wasserstein distance of the patches of two equally large sets of images, times 1000.

    Patches of both sets are standardised with the mean and deviation of the real ones, per channel. Each distance is
    the mean over random directions of the mean distance between the sorted projections.

    Args:
        drawn: `(B, 3, S, S)` in [0, 1].
        real: the same shape.
        seed: of the patches and directions, the same for all sets that are compared.

    Returns:
        One distance per scale, 16 pixels first.

    Raises:
        ValueError: the sets differ in shape.
    """
    if drawn.shape != real.shape:
        raise ValueError(f"The sets have shapes {tuple(drawn.shape)} and {tuple(real.shape)}; expected equal ones.")
    distances = []
    for one, other in zip(laplacian_pyramid(drawn), laplacian_pyramid(real), strict=True):
        generator = torch.Generator().manual_seed(seed)
        both = [patches(images, generator).unflatten(1, (3, -1)) for images in (one, other)]
        mean, deviation = both[1].mean((0, 2), keepdim=True), both[1].std((0, 2), keepdim=True).clamp(min=1e-6)
        ours, theirs = (((part - mean) / deviation).flatten(1) for part in both)
        directions = F.normalize(torch.randn(DIRECTIONS, ours.shape[1], generator=generator), dim=1)
        projected = [(directions @ part.T).sort().values for part in (ours, theirs)]
        distances.append(1000 * float((projected[0] - projected[1]).abs().mean()))
    return distances[::-1]


def measure(
    drawn: torch.Tensor, held_out: torch.Tensor, trained_on: torch.Tensor, labels: Sequence[int] = ()
) -> dict[str, float]:
    """Return all measures of drawn images.

    Args:
        drawn: `(B, 3, S, S)` in [0, 1].
        held_out: B held-out images.
        trained_on: images of the training data.
        labels: of the held-out images, with which the drawn ones were drawn; empty if there are no classes.

    Returns:
        `distance` (mean over the scales), `distance_16`, `distance_32`; `copying`: by how much a drawing is
        nearer, as a root mean square difference of pixels, to the nearest training image than to the nearest of
        equally many held-out ones; about 0 for a model that copies nothing; with classes `retrieval`: the share of
        the drawings whose nearest held-out image has their class.
    """
    scales = sliced_wasserstein(drawn, held_out)
    number = min(len(trained_on), len(held_out))
    size = drawn[0].numel() ** 0.5
    trained, _ = nearest(drawn / size, trained_on[:number] / size)
    other, numbers = nearest(drawn / size, held_out[:number] / size)
    values = {f"distance_{SMALLEST * 2**scale}": value for scale, value in enumerate(scales)}
    values |= {"distance": sum(scales) / len(scales), "copying": float(other.mean() - trained.mean())}
    if labels:
        found = [labels[index] for index in numbers.tolist()]
        values["retrieval"] = sum(map(eq, found, labels)) / len(found)
    return values
