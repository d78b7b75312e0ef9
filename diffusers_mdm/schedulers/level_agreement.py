# SPDX-License-Identifier: Apache-2.0
"""Levels that agree: a pyramid is one picture, so the outer clean level, averaged down, is the inner one.

For the exact denoiser this holds by itself: both clean levels are expectations given the same noisy pyramid, and
averaging is linear. A trained network predicts each level as well as it can, and the small ones better. The difference
between two predicted levels, enlarged, is added to the outer one; a strength says which share of it.
"""

from __future__ import annotations

import numbers
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F

from ..config_reading import describe
from ..pyramid import Pyramid, build_pyramid
from .block_averages import project_onto_average

Strengths = float | Sequence[float]


def agreement_strengths(level_agreement: Any, num_levels: int) -> list[float]:
    """The strength of every level but the innermost one, `num_levels` - 1 numbers.

    Args:
        level_agreement: one number for all of them; or one each, innermost first, of which those of levels that are
            not drawn are left out.
        num_levels: how many levels are drawn.

    Raises:
        ValueError: not numbers from 0 to 1, or fewer than there are levels.
    """
    num_outer = num_levels - 1
    several = isinstance(level_agreement, (list, tuple))
    strengths = list(level_agreement) if several else [level_agreement] * num_outer
    for strength in strengths if several else [level_agreement]:
        is_number = isinstance(strength, numbers.Real) and not isinstance(strength, bool)
        if not is_number or not 0 <= strength <= 1:
            raise ValueError(
                f"`level_agreement` is {describe(level_agreement)}; expected a number from 0 (each level by itself) "
                "to 1 (the averages of a level are the level inside), or one for every level but the innermost."
            )
    if len(strengths) < num_outer:
        raise ValueError(
            f"`level_agreement` has {len(strengths)} numbers for {num_levels} levels; expected {num_outer}, one for "
            "every level but the innermost one, or a single number."
        )
    return [float(strength) for strength in strengths[:num_outer]]


def agree(levels: Pyramid, strengths: Sequence[float], bound: float | None = None) -> Pyramid:
    """Bring clean levels together, from the inside out; level 0 stays.

    Args:
        levels: clean levels `(B_i, C, H_i, W_i)`, or with frames, innermost first.
        strengths: for every level but the innermost: the difference between its averages and the level inside shrinks
            by the factor 1 - strength.
        bound: what the levels are clipped to, +- `bound`, and stay in; None for no bound.
    """
    agreed = levels[:1]
    for outer, strength in zip(levels[1:], strengths, strict=True):
        agreed.append(_drawn_towards(outer, agreed[-1][: len(outer)], strength, bound) if strength else outer)
    return agreed


def _drawn_towards(outer: torch.Tensor, inner: torch.Tensor, strength: float, bound: float | None) -> torch.Tensor:
    averages = average_down(outer, inner)
    moved = outer + enlarge(strength * (inner - averages), outer)
    if bound is None:
        return moved
    # The averages are between those of two levels that are in range, so there is a picture in range that has them.
    wanted = averages + strength * (inner - averages)
    if outer.ndim == 4:
        return bound * project_onto_average(moved / bound, wanted / bound)
    skipped = outer.shape[2] // inner.shape[2]
    in_range = moved.clamp(-bound, bound)
    in_range[:, :, ::skipped] = bound * project_onto_average(moved[:, :, ::skipped] / bound, wanted / bound)
    return in_range


def average_down(outer: torch.Tensor, inner: torch.Tensor) -> torch.Tensor:
    """The outer level as the level inside it shows it: averages of pixels, of clips those of every k-th frame."""
    frames = [inner.shape[2], outer.shape[2]] if outer.ndim == 5 else None
    return build_pyramid(outer, [inner.shape[-2], outer.shape[-2]], frames)[0]


def enlarge(difference: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
    """Enlarge a picture or clip so smoothly as its averages, which are kept, allow.

    Bilinear enlarging alone would lose up to three quarters of what changes from pixel to pixel when it is averaged
    down again; what it has lost is added evenly to each block. Between the frames of a clip it goes linearly; after
    the last one it stays.

    Args:
        difference: `(B, C, h, w)`, or `(B, C, f, h, w)`.
        like: `(B, C, H, W)`, or `(B, C, F, H, W)`: of the size to enlarge to.

    Returns:
        The shape of `like`; `average_down` gives `difference` back.
    """
    if like.ndim == 4:
        smooth = F.interpolate(difference, like.shape[-2:], mode="bilinear", align_corners=False)
        lost = difference - average_down(smooth, difference)
        return smooth + F.interpolate(lost, like.shape[-2:], mode="nearest")
    frames = difference.transpose(1, 2).flatten(0, 1)
    if difference.shape[-1] < like.shape[-1]:
        frames = enlarge(frames, like[:, :, 0].repeat_interleave(difference.shape[2], dim=0))
    known = frames.unflatten(0, (len(difference), -1)).transpose(1, 2)
    places = torch.arange(like.shape[2], device=like.device)
    skipped = like.shape[2] // difference.shape[2]
    before = places // skipped
    after = (before + 1).clamp(max=difference.shape[2] - 1)
    share = ((places % skipped) / skipped).to(known.dtype)[:, None, None]
    return torch.lerp(known[:, :, before], known[:, :, after], share)
