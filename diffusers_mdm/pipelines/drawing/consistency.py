# SPDX-License-Identifier: Apache-2.0
"""Pictures whose averages over blocks of pixels are given: at every level of a drawing, and on the grid of 8 bits."""

from __future__ import annotations

from typing import Any

import torch

from diffusers_mdm.pyramid import Pyramid, build_pyramid
from diffusers_mdm.schedulers.block_averages import blocks_of, picture_of, project_onto_average


def round_to_eight_bits(picture: torch.Tensor, average: torch.Tensor) -> torch.Tensor:
    """Move every pixel to a neighbouring whole number of 255ths of [0, 1] so that the averages stay.

    Within each block everything is rounded down, and the pixels that lost most go one up, as the sum asks for.

    Args:
        picture: `(B, C, H, W)` in [-1, 1], with the averages `average` to rounding.
        average: `(B, C, h, w)` in [-1, 1].

    Returns:
        The shape of `picture`, in [-1, 1]. Where `average` holds 8-bit pictures, the 8-bit numbers of each block sum
        to exactly f^2 times the number of the given pixel; otherwise they do as whole numbers can, their
        average within 1 / (2 f^2) of an 8-bit step.
    """
    values = (blocks_of(picture, average) + 1) * 127.5
    num_pixels = values.shape[-1]
    wanted = ((average[..., None] + 1) * 127.5 * num_pixels).round()
    down = values.floor().clamp(0, 255)
    missing = wanted - down.sum(dim=-1, keepdim=True)
    # Rank of each pixel by what rounding down took from it.
    order = (values - down).argsort(dim=-1, descending=True, stable=True)
    rank = order.argsort(dim=-1)
    return picture_of((down + (rank < missing)) / 127.5 - 1, picture)


def make_consistent(pictures: Pyramid, average: torch.Tensor, *, eight_bit: bool) -> Pyramid:
    """The nearest pictures whose averages are the given ones, at every level larger than these.

    Args:
        pictures: levels `(B, C, H_i, W_i)`, innermost first.
        average: the given pictures `(B, C, h, w)` in [-1, 1].
        eight_bit: also put the pixels on the grid of 8 bits.

    Returns:
        Levels in [-1, 1]; see `project_onto_average` and `round_to_eight_bits` for how exact they are.
    """
    consistent = []
    for level in pictures:
        if level.shape[-2] > average.shape[-2]:
            level = project_onto_average(level, average)
            level = round_to_eight_bits(level, average) if eight_bit else level
        consistent.append(level)
    return consistent


def project_prediction(
    scheduler: Any, prediction: Pyramid, sample: Pyramid, timestep: torch.Tensor, average: torch.Tensor
) -> Pyramid:
    """Change a prediction so that the clean pictures it stands for have the given averages.

    Levels larger than `average` change as little as that takes (the range-null space step of DDNM, arXiv:2212.00490,
    equation 13, for average pooling, and within [-1, 1]); the others become what is given.

    Args:
        scheduler: a `MatryoshkaScheduler`, whose `prediction_type` says what a prediction is.
        prediction: `(B, C, H_i, W_i)` of every level.
        sample: z_t of every level.
        timestep: t.
        average: `(B, C, h, w)` in [-1, 1], the given picture.

    Returns:
        A prediction; the scheduler's step finds the projected pictures in it.
    """

    def project(clean: torch.Tensor) -> torch.Tensor:
        if clean.shape[-2] > average.shape[-2]:
            return project_onto_average(clean, average)
        return build_pyramid(average.to(clean), sorted({clean.shape[-2], average.shape[-2]}))[0]

    return scheduler.with_clean_changed(prediction, sample, timestep, project)
