# SPDX-License-Identifier: Apache-2.0
"""The relative sizes of a model's levels, computed from their configs."""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Sequence

from .level_config import LevelConfig


@dataclasses.dataclass(frozen=True)
class LevelGeometry:
    """The relative sizes of a model's levels, innermost first.

    Args:
        ratios: side of every level relative to level 0, e.g. (1, 4, 16).
        frames: number of frames of every level, e.g. (1, 4, 16); all 1 for an image model.
        multiples: if levels 0 … k run, the sides of level 0 must be multiples of entry k, so that every resolution has
            integer sides, and even ones where there is temporal attention.
        has_temporal_attention: for every level, whether it has temporal attention.
    """

    ratios: tuple[int, ...]
    frames: tuple[int, ...]
    multiples: tuple[int, ...]
    has_temporal_attention: tuple[bool, ...]

    @classmethod
    def of(cls, level_configs: Sequence[LevelConfig]) -> LevelGeometry:
        """Compute the geometry of a model from its level configs."""
        return cls(
            ratios=side_ratios(level_configs),
            frames=tuple(level.num_frames for level in level_configs),
            multiples=tuple(_size_multiple(level_configs[: index + 1]) for index in range(len(level_configs))),
            has_temporal_attention=tuple(any(level.temporal_layers_per_block or ()) for level in level_configs),
        )


def side_ratios(level_configs: Sequence[LevelConfig]) -> tuple[int, ...]:
    """Return the side of every level relative to level 0, e.g. (1, 4, 16)."""
    ratios = [1]
    for inner, level_config in itertools.pairwise(level_configs):
        ratios.append(ratios[-1] * level_config.ratio * level_config.patch_size // inner.patch_size)
    return tuple(ratios)


def level_sides(sample_size: int, level_configs: Sequence[LevelConfig]) -> tuple[int, ...]:
    """Return the side of every level, innermost first, in the unit of `sample_size` (pixels or latents), that of level
    0.
    """
    return tuple(sample_size * ratio for ratio in side_ratios(level_configs))


def _size_multiple(level_configs: Sequence[LevelConfig]) -> int:
    multiple = level_configs[0].patch_size * 2 ** (len(level_configs[0].block_out_channels) - 1)
    for level_config, ratio in zip(level_configs, side_ratios(level_configs), strict=True):
        for step, layers in enumerate(level_config.temporal_layers_per_block or ()):
            if layers:
                needed = level_config.patch_size * (2 if level_config.temporal_downsample else 2 ** (step + 1))
                multiple = math.lcm(multiple, needed // math.gcd(needed, ratio))
    return multiple
