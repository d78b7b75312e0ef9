# SPDX-License-Identifier: Apache-2.0
"""Sizes of levels as they follow from their rows."""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Sequence

from .level_config import LevelConfig


@dataclasses.dataclass(frozen=True)
class LevelGeometry:
    """How the levels of a model lie in one another, innermost first.

    Args:
        ratios: side of every level over that of level 0, e.g. (1, 4, 16).
        frames: of every level, e.g. (1, 4, 16); all 1 in a model of pictures.
        multiples: entry k is what the sides of level 0 must be multiples of where levels 0 … k run, so that every
            resolution has whole sides, and even ones where there is temporal attention.
        has_temporal_attention: of every level.
    """

    ratios: tuple[int, ...]
    frames: tuple[int, ...]
    multiples: tuple[int, ...]
    has_temporal_attention: tuple[bool, ...]

    @classmethod
    def of(cls, rows: Sequence[LevelConfig]) -> LevelGeometry:
        """What the rows of a model make of it."""
        return cls(
            ratios=side_ratios(rows),
            frames=tuple(row.num_frames for row in rows),
            multiples=tuple(_size_multiple(rows[: index + 1]) for index in range(len(rows))),
            has_temporal_attention=tuple(any(row.temporal_layers_per_block or ()) for row in rows),
        )


def side_ratios(rows: Sequence[LevelConfig]) -> tuple[int, ...]:
    """Side of every level over that of level 0, e.g. (1, 4, 16)."""
    ratios = [1]
    for inner, row in itertools.pairwise(rows):
        ratios.append(ratios[-1] * row.ratio * row.patch_size // inner.patch_size)
    return tuple(ratios)


def level_sides(sample_size: int, rows: Sequence[LevelConfig]) -> tuple[int, ...]:
    """Side of every level, innermost first, in pixels (or latents) as `sample_size`, that of level 0."""
    return tuple(sample_size * ratio for ratio in side_ratios(rows))


def _size_multiple(rows: Sequence[LevelConfig]) -> int:
    multiple = rows[0].patch_size * 2 ** (len(rows[0].block_out_channels) - 1)
    for row, ratio in zip(rows, side_ratios(rows), strict=True):
        for step, layers in enumerate(row.temporal_layers_per_block or ()):
            if layers:
                needed = row.patch_size * (2 if row.temporal_downsample else 2 ** (step + 1))
                multiple = math.lcm(multiple, needed // math.gcd(needed, ratio))
    return multiple
