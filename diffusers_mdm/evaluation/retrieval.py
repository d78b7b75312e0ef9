# SPDX-License-Identifier: Apache-2.0
"""Nearest pictures: is a drawing what its caption asks for, and is it more than a copy of a training picture?

Pictures are compared by the L2 distance of their pixels, averaged down to 16 pixels a side: a crude measure, but free
of any other model, and exact recall of a caption's own picture out of thousands is no accident.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F

COMPARED_SIDE = 16


@dataclass(frozen=True)
class Retrieval:
    """What the nearest reference pictures say of N drawings.

    Attributes:
        own_picture: share of drawings whose nearest picture bears their caption (or has the very same pixels).
        distance: mean distance to the nearest picture, root mean square of the pixels' difference, in [0, 1].
        real_distance: the same of reference pictures to their nearest other one. Drawings much nearer than that have
            been learnt by heart.
        covered: share of the reference that is nearest to some drawing.
    """

    own_picture: float
    distance: float
    real_distance: float
    covered: float


def retrieve(
    drawn: torch.Tensor, captions: Sequence[str], thumbnails: torch.Tensor, real_captions: Sequence[str]
) -> Retrieval:
    """Compare drawings with the reference pictures.

    Args:
        drawn: `(N, 3, H, W)`, uint8.
        captions: what was asked for, N.
        thumbnails: `(M, 3, 16, 16)`, uint8.
        real_captions: M.

    Raises:
        ValueError: there is no drawing, or fewer than two reference pictures.
    """
    if not len(drawn) or len(thumbnails) < 2:
        raise ValueError(
            f"Nearest pictures need drawings and at least two reference pictures; there are {len(drawn)} and "
            f"{len(thumbnails)}."
        )
    small, real = unit_vectors(drawn), unit_vectors(thumbnails)
    nearest = torch.cdist(small, real).min(1)
    hits = [
        real_captions[number] == caption or same_picture_is_captioned(real, number, caption, real_captions)
        for number, caption in zip(nearest.indices.tolist(), captions, strict=True)
    ]
    return Retrieval(
        own_picture=sum(hits) / len(hits),
        distance=float(nearest.values.mean()),
        real_distance=float(nearest_other(real).mean()),
        covered=len(set(nearest.indices.tolist())) / len(real),
    )


def thumbnail(images: torch.Tensor) -> torch.Tensor:
    """Pictures `(N, 3, H, W)`, uint8, of any size, averaged down to `(N, 3, 16, 16)`, uint8."""
    return F.adaptive_avg_pool2d(images.float(), COMPARED_SIDE).round().to(torch.uint8)


def unit_vectors(images: torch.Tensor) -> torch.Tensor:
    """Pictures as vectors whose L2 distance is the root mean square difference of their pixels in [0, 1]."""
    flat = F.adaptive_avg_pool2d(images.float() / 255, COMPARED_SIDE).flatten(1)
    return flat / flat.shape[1] ** 0.5


def nearest_other(vectors: torch.Tensor) -> torch.Tensor:
    """The distance `(N,)` of each vector to the nearest other one."""
    distances = torch.cdist(vectors, vectors)
    return distances.fill_diagonal_(float("inf")).min(1).values


def same_picture_is_captioned(real: torch.Tensor, number: int, caption: str, captions: Sequence[str]) -> bool:
    """Whether a picture with exactly these pixels bears the caption: two captions can have the very same picture."""
    equal = (real == real[number]).all(1).nonzero().flatten().tolist()
    return any(captions[other] == caption for other in equal)
