# SPDX-License-Identifier: Apache-2.0
"""Agreement of predicted levels: the clean outer level, averaged down, should equal the inner level.

For an exact denoiser this holds automatically: both clean levels are expectations given the same noisy pyramid, and
averaging is linear. A trained network predicts small levels better than large ones. Therefore a fraction of the
difference between two predicted levels, the strength, is enlarged and added to the outer one.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from ..checked_values import describe, is_number
from ..pyramid import Pyramid
from .block_averages import average_down, enlarge, project_onto_average

Strengths = float | Sequence[float]


def agreement_strengths(level_agreement: Any, num_levels: int) -> list[float]:
    """Return the strength for every level but the innermost one, `num_levels` - 1 numbers.

    Args:
        level_agreement: one number for all levels, or one per level, innermost first; those of levels that are not
            generated are ignored.
        num_levels: number of generated levels.

    Raises:
        ValueError: not numbers from 0 to 1, or fewer than there are levels.
    """
    num_outer = num_levels - 1
    several = isinstance(level_agreement, (list, tuple))
    strengths = list(level_agreement) if several else [level_agreement] * num_outer
    for strength in strengths if several else [level_agreement]:
        if not is_number(strength, 0, 1):
            raise ValueError(
                f"`level_agreement` is {describe(level_agreement)}; expected a number from 0 (levels are "
                f"independent) to 1 (the averages of a level equal the level inside it), or one for every level "
                f"but the innermost."
            )
    if len(strengths) < num_outer:
        raise ValueError(
            f"`level_agreement` has {len(strengths)} numbers for {num_levels} levels; expected {num_outer}, one for "
            "every level but the innermost one, or a single number."
        )
    return [float(strength) for strength in strengths[:num_outer]]


def agree(levels: Pyramid, strengths: Sequence[float], bound: float | None = None) -> Pyramid:
    """Make clean levels agree, from the inside out; level 0 is not changed.

    Args:
        levels: clean levels `(B_i, C, H_i, W_i)`, or with frames, innermost first.
        strengths: for every level but the innermost; the difference between its averages and the level inside it is
            multiplied by 1 - strength.
        bound: levels are clipped to +- `bound`; None for no bound.
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
    # The averages are between those of two levels in range, so there is an image in range that has them.
    wanted = averages + strength * (inner - averages)
    return bound * project_onto_average(moved / bound, wanted / bound)
