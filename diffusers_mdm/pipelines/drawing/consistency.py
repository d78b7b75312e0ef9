# SPDX-License-Identifier: Apache-2.0
"""Making images consistent with given block averages: during sampling, at every level, and for 8-bit values."""

from __future__ import annotations

from typing import Any

import torch

from diffusers_mdm.pyramid import Pyramid
from diffusers_mdm.schedulers.block_averages import blocks_of, image_of, project_onto_average, with_given_average


def round_to_eight_bits(image: torch.Tensor, average: torch.Tensor) -> torch.Tensor:
    """Round every pixel up or down to an 8-bit value such that the block averages are preserved.

    All pixels of a block are rounded down, and then those that lost most are increased by one, as many as the sum
    requires.

    Args:
        image: `(B, C, H, W)` in [-1, 1], whose block averages equal `average` up to rounding.
        average: `(B, C, h, w)` in [-1, 1].

    Returns:
        An image with the shape of `image`, in [-1, 1]. If `average` has 8-bit values, the 8-bit values of each block
        sum to exactly f^2 times the given pixel; otherwise their average is within 1 / (2 f^2) of an 8-bit step.
    """
    values = (blocks_of(image, average) + 1) * 127.5
    num_pixels = values.shape[-1]
    wanted = ((average[..., None] + 1) * 127.5 * num_pixels).round()
    down = values.floor().clamp(0, 255)
    missing = wanted - down.sum(dim=-1, keepdim=True)
    # Rank of each pixel by how much rounding down took from it.
    order = (values - down).argsort(dim=-1, descending=True, stable=True)
    rank = order.argsort(dim=-1)
    return image_of((down + (rank < missing)) / 127.5 - 1, image)


def make_consistent(images: Pyramid, average: torch.Tensor, *, eight_bit: bool) -> Pyramid:
    """Project all levels that are larger than `average` onto images with these block averages.

    Args:
        images: levels `(B, C, H_i, W_i)`, innermost first.
        average: the given images `(B, C, h, w)` in [-1, 1].
        eight_bit: also round the pixels to 8-bit values.

    Returns:
        Levels in [-1, 1]; see `project_onto_average` and `round_to_eight_bits` for how exact they are.
    """
    consistent = []
    for level in images:
        if level.shape[-2] > average.shape[-2]:
            level = project_onto_average(level, average)
            level = round_to_eight_bits(level, average) if eight_bit else level
        consistent.append(level)
    return consistent


def project_prediction(
    scheduler: Any, prediction: Pyramid, sample: Pyramid, timestep: torch.Tensor, average: torch.Tensor
) -> Pyramid:
    """Modify a prediction such that the clean images computed from it have the given averages.

    Levels larger than `average` are changed as little as possible (the range-null space step of DDNM,
    arXiv:2212.00490, equation 13, for average pooling, within [-1, 1]); the others are replaced by the given image.

    Args:
        scheduler: a `MatryoshkaScheduler`, whose `prediction_type` says what a prediction is.
        prediction: `(B, C, H_i, W_i)` of every level, or for clips `(B, C, F_i, H_i, W_i)`.
        sample: z_t of every level.
        timestep: t.
        average: the given image `(B, C, h, w)`, or the given clip `(B, C, f, h, w)`, in [-1, 1].

    Returns:
        A prediction from which the scheduler's step computes the projected images.
    """
    return scheduler.with_clean_changed(prediction, sample, timestep, lambda clean: with_given_average(clean, average))
