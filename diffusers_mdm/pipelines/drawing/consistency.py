# SPDX-License-Identifier: Apache-2.0
"""Pictures whose averages over blocks of pixels are given: the nearest ones in range, and on the grid of 8 bits.

A block is the square of f x f pixels of a picture that averages to one pixel of the smaller, given picture.
"""

from __future__ import annotations

from typing import Any

import torch

from diffusers_mdm.pyramid import Pyramid, level_ratios
from diffusers_mdm.schedulers.reverse_steps import clean_from_prediction


def project_onto_average(picture: torch.Tensor, average: torch.Tensor) -> torch.Tensor:
    """The picture in [-1, 1] with the given averages that is nearest to `picture` cut to [-1, 1].

    Within a block all pixels move by the same amount, except those that reach the end of the range: they stay there,
    and the others move further (projection onto the meet of a hyperplane and a box). There always is such a picture,
    since the averages are in [-1, 1] themselves.

    Args:
        picture: `(B, C, H, W)`, or with frames `(B, C, F, H, W)`.
        average: `(B, C, h, w)` in [-1, 1], h dividing H and w dividing W by the same factor.

    Returns:
        The shape of `picture`. Its averages differ from `average` by rounding only, at most 1e-6 in float32.
    """
    blocks = _blocks(picture, average).clamp(-1, 1)
    missing = average[..., None].to(blocks.dtype) - blocks.mean(dim=-1, keepdim=True)
    # Where pixels have to go down, the mirrored block has to go up.
    sign = torch.where(missing < 0, -1.0, 1.0).to(blocks.dtype)
    room = 1 - sign * blocks
    return _picture(blocks + sign * _fill_evenly(room, missing.abs() * blocks.shape[-1]), picture)


def _fill_evenly(room: torch.Tensor, amount: torch.Tensor) -> torch.Tensor:
    """Pour `amount` into vessels of the sizes `room` so that all are filled equally high, or to the brim.

    Args:
        room: `(..., n)`, at least 0.
        amount: `(..., 1)`, at least 0, at most the sum of `room`.
    """
    num_vessels = room.shape[-1]
    ascending = room.sort(dim=-1).values
    # With the k smallest vessels full, the others stand at this height.
    full = ascending.cumsum(dim=-1) - ascending
    still_open = torch.arange(num_vessels, 0, -1, device=room.device, dtype=room.dtype)
    heights = (amount - full) / still_open
    # The right k is the first whose next vessel is not overfilled; rounding may leave none, then all are full.
    fits = heights <= ascending
    first = torch.where(fits.any(dim=-1), fits.to(torch.int64).argmax(dim=-1), num_vessels - 1)[..., None]
    return torch.minimum(room, heights.gather(-1, first).clamp(min=0))


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
    values = (_blocks(picture, average) + 1) * 127.5
    num_pixels = values.shape[-1]
    wanted = ((average[..., None] + 1) * 127.5 * num_pixels).round()
    down = values.floor().clamp(0, 255)
    missing = wanted - down.sum(dim=-1, keepdim=True)
    # Rank of each pixel by what rounding down took from it.
    order = (values - down).argsort(dim=-1, descending=True, stable=True)
    rank = order.argsort(dim=-1)
    return _picture((down + (rank < missing)) / 127.5 - 1, picture)


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

    Only levels larger than `average` change. (The range-null space step of DDNM, arXiv:2212.00490, equation 13, for
    average pooling, and within [-1, 1].)

    Args:
        scheduler: a `MatryoshkaScheduler`, whose `prediction_type` says what a prediction is.
        prediction: `(B, C, H_i, W_i)` of every level.
        sample: z_t of every level.
        timestep: t.
        average: `(B, C, h, w)` in [-1, 1], the given picture.

    Returns:
        A prediction; the scheduler's step finds the projected pictures in it.
    """
    kind, rescaled = scheduler.config.prediction_type, scheduler.config.level_scaling == "rescale"
    powers = scheduler.level_alphas_cumprod(sample, timestep)
    changed = []
    for output, level, power, ratio in zip(prediction, sample, powers, level_ratios(sample), strict=True):
        if level.shape[-2] <= average.shape[-2]:
            changed.append(output)
            continue
        # Some published models diffuse the pictures divided by the ratio of their level.
        scale = ratio if rescaled else 1.0
        alpha, sigma = (part.reshape(-1, *[1] * (level.ndim - 1)) for part in (power.sqrt(), (1 - power).sqrt()))
        clean = clean_from_prediction(output, level, alpha, sigma, kind)
        clean = project_onto_average(clean * scale, average) / scale
        changed.append(_prediction_from_clean(clean, level, alpha, sigma, kind))
    return changed


def _prediction_from_clean(
    clean: torch.Tensor, sample: torch.Tensor, alpha: torch.Tensor, sigma: torch.Tensor, prediction_type: str
) -> torch.Tensor:
    """The inverse of `clean_from_prediction`."""
    if prediction_type == "sample":
        return clean
    if prediction_type == "epsilon":
        return (sample - alpha * clean) / sigma
    return (alpha * sample - clean) / sigma


def _blocks(picture: torch.Tensor, average: torch.Tensor) -> torch.Tensor:
    """Pixels block by block: `(B, C, h, w, f * f)`."""
    factor = picture.shape[-1] // average.shape[-1]
    return picture.unflatten(-1, (-1, factor)).unflatten(-3, (-1, factor)).transpose(-3, -2).flatten(-2)


def _picture(blocks: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
    """The inverse of `_blocks`, in the shape of the picture `like`."""
    factor = like.shape[-1] // blocks.shape[-2]
    return blocks.unflatten(-1, (factor, factor)).transpose(-3, -2).reshape(like.shape)
