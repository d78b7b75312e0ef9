# SPDX-License-Identifier: Apache-2.0
"""Nearest-image retrieval: does an image show what its caption says, and is it a copy of a training image?

Images are compared by the L2 distance of their pixels, averaged down to 16 x 16: a crude measure, but one that needs
no other model, and finding a caption's own image among thousands is no accident.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F

COMPARED_SIDE = 16


@dataclass(frozen=True)
class Retrieval:
    """Scores of N generated images by their nearest reference images.

    Attributes:
        own_image: fraction of images whose nearest reference image has their caption (or has exactly the same
            pixels as an image with their caption).
        distance: mean distance to the nearest reference image, as root mean square difference of pixels in [0, 1].
        real_distance: the same from each reference image to the nearest other one. Images that are much closer than
            this were memorised.
        covered: fraction of the reference images that are nearest to some generated image.
    """

    own_image: float
    distance: float
    real_distance: float
    covered: float


def retrieve(
    drawn: torch.Tensor, captions: Sequence[str], thumbnails: torch.Tensor, real_captions: Sequence[str]
) -> Retrieval:
    """Compare generated images with the reference images.

    Args:
        drawn: generated images `(N, 3, H, W)`, uint8.
        captions: their N captions.
        thumbnails: reference images `(M, 3, 16, 16)`, uint8.
        real_captions: their M captions.

    Raises:
        ValueError: there is no generated image, or fewer than two reference images.
    """
    if not len(drawn) or len(thumbnails) < 2:
        raise ValueError(
            f"Retrieval needs generated images and at least two reference images; there are {len(drawn)} and "
            f"{len(thumbnails)}."
        )
    small, real = unit_vectors(drawn), unit_vectors(thumbnails)
    distances, numbers = nearest(small, real)
    found = numbers.tolist()
    hits = [
        real_captions[number] == caption or same_image_is_captioned(real, number, caption, real_captions)
        for number, caption in zip(found, captions, strict=True)
    ]
    return Retrieval(
        own_image=sum(hits) / len(hits),
        distance=float(distances.mean()),
        real_distance=float(nearest_other(real).mean()),
        covered=len(set(found)) / len(real),
    )


def nearest(images: torch.Tensor, gallery: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Find the nearest entry of a gallery for each image or clip.

    Args:
        images: `(N, ...)`, in the shape and range of the gallery's entries.
        gallery: `(M, ...)`.

    Returns:
        The L2 distances to the nearest entries, and their numbers, both `(N,)`.
    """
    found = torch.cdist(images.flatten(1), gallery.flatten(1)).min(1)
    return found.values, found.indices


def thumbnail(images: torch.Tensor) -> torch.Tensor:
    """Average images `(N, 3, H, W)`, uint8, of any size down to `(N, 3, 16, 16)`, uint8."""
    return F.adaptive_avg_pool2d(images.float(), COMPARED_SIDE).round().to(torch.uint8)


def unit_vectors(images: torch.Tensor) -> torch.Tensor:
    """Scale images to vectors whose L2 distance is the root mean square difference of their pixels in [0, 1]."""
    flat = F.adaptive_avg_pool2d(images.float() / 255, COMPARED_SIDE).flatten(1)
    return flat / flat.shape[1] ** 0.5


def nearest_other(vectors: torch.Tensor) -> torch.Tensor:
    """Return the distance `(N,)` of each vector to the nearest other one."""
    distances = torch.cdist(vectors, vectors)
    return distances.fill_diagonal_(float("inf")).min(1).values


def same_image_is_captioned(real: torch.Tensor, number: int, caption: str, captions: Sequence[str]) -> bool:
    """Return whether an image with exactly the same pixels has the caption; two captions can have identical images."""
    equal = (real == real[number]).all(1).nonzero().flatten().tolist()
    return any(captions[other] == caption for other in equal)
