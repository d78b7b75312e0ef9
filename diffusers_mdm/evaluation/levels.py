# SPDX-License-Identifier: Apache-2.0
"""Measures of single images: grain in white corners, distance to real ones, and the agreement of an image's levels."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import torch

from .images import pool

CORNER = 8  # size of a corner: one eighth of the side
WHITE = 250  # of 255: pixels of the real image at or above this are white


def corner_noise(drawn: torch.Tensor, real: torch.Tensor) -> tuple[float, int]:
    """Measure grain as the standard deviation of pixels in the corners that are white in the real image.

    Args:
        drawn: generated images `(N, 3, S, S)`, uint8.
        real: the real images of the same captions.

    Returns:
        The mean over corners of the standard deviation of their pixels over positions (mean over colours), in [0, 1],
        and the number of corners that were white. NaN and 0 if there were none.
    """
    side = max(drawn.shape[-1] // CORNER, 1)
    ends = (slice(None, side), slice(-side, None))
    values = []
    for rows in ends:
        for columns in ends:
            white = (real[..., rows, columns] >= WHITE).flatten(1).all(1)
            if white.any():
                corner = drawn[white][..., rows, columns].float().flatten(2) / 255
                values.append(corner.std(2, correction=0).mean(1))
    if not values:
        return float("nan"), 0
    found = torch.cat(values)
    return float(found.mean()), len(found)


def pixel_distance(drawn: torch.Tensor, real: torch.Tensor) -> float:
    """Measure how far images are from others, such as the real ones of the same captions.

    Args:
        drawn: N images `(N, 3, S, S)`, uint8.
        real: as many others.

    Returns:
        The mean over images of the root mean square difference of pixels in [0, 1].
    """
    return float((drawn.float() - real.float()).square().flatten(1).mean(1).sqrt().mean() / 255)


def disagreement(pyramid: Sequence[torch.Tensor]) -> list[float]:
    """Measure how far each level, averaged down, is from the level inside it.

    Args:
        pyramid: the same N images at every level, `(N, 3, S, S)`, uint8, innermost first.

    Returns:
        The root mean square difference of pixels in [0, 1], for every level except the innermost.
    """
    return [
        float((pool(outer.float(), inner.shape[-1]) - inner.float()).square().mean().sqrt() / 255)
        for inner, outer in pairwise(pyramid)
    ]
