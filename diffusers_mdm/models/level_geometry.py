# SPDX-License-Identifier: Apache-2.0
"""Sizes of levels as they follow from their rows, and the check that a pyramid has them."""

from __future__ import annotations

import math
from collections.abc import Sequence

from ..checked_values import check_tensor
from ..pyramid import Pyramid, check_pyramid
from .level_config import LevelConfig


def side_ratios(rows: Sequence[LevelConfig]) -> tuple[int, ...]:
    """Side of every level over that of level 0, e.g. (1, 4, 16)."""
    ratios = [1]
    for row in rows[1:]:
        ratios.append(ratios[-1] * row.ratio)
    return tuple(ratios)


def level_sides(sample_size: int, rows: Sequence[LevelConfig]) -> tuple[int, ...]:
    """Side of every level, innermost first, in pixels (or latents) as `sample_size`, that of level 0."""
    return tuple(sample_size * ratio for ratio in side_ratios(rows))


def size_multiple(rows: Sequence[LevelConfig]) -> int:
    """What the sides of level 0 must be multiples of, so that every resolution of these levels has whole sides, and
    even ones where there is temporal attention.
    """
    multiple = 2 ** (len(rows[0].block_out_channels) - 1)
    for row, ratio in zip(rows, side_ratios(rows), strict=True):
        for step, layers in enumerate(row.temporal_layers_per_block or ()):
            if layers:
                needed = 2 if row.temporal_downsample else 2 ** (step + 1)
                multiple = math.lcm(multiple, needed // math.gcd(needed, ratio))
    return multiple


def check_sample(pyramid: Pyramid, all_rows: Sequence[LevelConfig], in_channels: int) -> None:
    """Refuse what is no pyramid of the inner levels of a model.

    Args:
        pyramid: levels, innermost first, as they are to be run.
        all_rows: of the model.
        in_channels: of the model.

    Raises:
        ValueError: number, size, frames or channels of the levels.
    """
    check_pyramid(pyramid)
    for index, level in enumerate(pyramid):
        check_tensor(level, f"sample[{index}]", "a noisy level", is_floating=True)
    if len(pyramid) > len(all_rows):
        raise ValueError(
            f"`sample` has {len(pyramid)} levels; the model has {len(all_rows)}, whose sides are to each other as "
            f"{side_ratios(all_rows)} (innermost first)."
        )
    rows = all_rows[: len(pyramid)]
    multiple = size_multiple(rows)
    height, width = pyramid[0].shape[-2:]
    if height % multiple or width % multiple:
        even = " Temporal attention halves the sides once more." if any(map(_is_temporal, rows)) else ""
        raise ValueError(
            f"Level 0 of `sample` is {height} x {width}; both must be multiples of {multiple}.{even} Crop or pad."
        )
    for index, (level, ratio) in enumerate(zip(pyramid, side_ratios(rows), strict=True)):
        if level.shape[1] != in_channels:
            raise ValueError(
                f"Level {index} of `sample` has {level.shape[1]} channels; the model takes {in_channels}."
            )
        if tuple(level.shape[-2:]) != (height * ratio, width * ratio):
            raise ValueError(
                f"Level {index} of `sample` is {level.shape[-2]} x {level.shape[-1]}; level 0 is {height} x {width} "
                f"and level {index} of this model is {ratio} times larger: expected {height * ratio} x "
                f"{width * ratio}."
            )
    _check_frames(pyramid, rows)


def _check_frames(pyramid: Pyramid, rows: Sequence[LevelConfig]) -> None:
    """Refuse clips of another number of frames than the model's; single pictures go through every level that does not
    resample frames.
    """
    expected = tuple(row.num_frames for row in rows)
    given = tuple(level.shape[2] if level.ndim == 5 else 1 for level in pyramid)
    takes_pictures = len(set(expected)) == 1
    if given == expected or (takes_pictures and set(given) == {1}):
        return
    also = ", or a single picture on each" if takes_pictures else ""
    raise ValueError(
        f"`sample` has {given} frames, innermost level first; this model takes {expected}{also}. Give clips as "
        "(batch, channels, frames, height, width), cut to that length."
    )


def _is_temporal(row: LevelConfig) -> bool:
    return any(row.temporal_layers_per_block or ())
