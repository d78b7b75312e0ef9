# SPDX-License-Identifier: Apache-2.0
"""Checks of what a level's config says about frames; each refusal says what was expected."""

from __future__ import annotations

from typing import TYPE_CHECKING

from .frames import frame_grid_side
from .temporal import TEMPORAL_HEAD_DIM

if TYPE_CHECKING:
    from .level_config import LevelConfig


def check_temporal(row: LevelConfig, index: int) -> None:
    """Refuse temporal settings of level `index` that contradict each other or its other settings."""
    if not isinstance(row.num_frames, int) or isinstance(row.num_frames, bool) or row.num_frames < 1:
        raise ValueError(f"num_frames[{index}] = {row.num_frames!r}; expected a whole number, 1 for pictures.")
    layers = row.temporal_layers_per_block or ()
    if any(count < 0 for count in layers):
        raise ValueError(f"temporal_layers_per_block[{index}] = {layers}: use 0 for none.")
    if any(layers) and row.num_frames == 1:
        raise ValueError(
            f"temporal_layers_per_block[{index}] = {layers}, but num_frames[{index}] is 1: attention among frames "
            "needs several. Set num_frames, or leave the temporal layers out."
        )
    narrow = [
        channels
        for channels, count in zip(row.block_out_channels, layers, strict=False)
        if count and channels % TEMPORAL_HEAD_DIM
    ]
    if narrow:
        raise ValueError(
            f"temporal_layers_per_block[{index}] = {layers} puts temporal attention at {narrow} channels; its heads "
            f"have {TEMPORAL_HEAD_DIM} each, so block_out_channels[{index}] must be multiples of that there. Use 0 "
            "layers elsewhere."
        )
    if row.temporal_rotary and not any(layers):
        raise ValueError(
            f"temporal_rotary[{index}] is True, but temporal_layers_per_block[{index}] = "
            f"{row.temporal_layers_per_block} has no temporal attention that would use the positions."
        )
    if index == 0 and (row.temporal_downsample or row.tiled_adapters):
        raise ValueError(
            "temporal_downsample[0] and tiled_adapters[0] must be False: they are about the level inside, and level 0 "
            "has none."
        )


def check_frames(row: LevelConfig, inner: LevelConfig, index: int) -> None:
    """Refuse a number of frames of level `index` that does not follow from the level inside it."""
    expected = inner.num_frames * row.frame_ratio
    if row.num_frames != expected:
        how = (
            f"temporal_downsample[{index}] with {len(row.block_out_channels)} resolutions makes {row.frame_ratio} "
            "times as many"
            if row.temporal_downsample
            else f"without temporal_downsample[{index}] it has as many"
        )
        raise ValueError(
            f"num_frames[{index}] = {row.num_frames}, but level {index - 1} has {inner.num_frames} and {how}: "
            f"expected {expected}."
        )
    if row.tiled_adapters:
        try:
            frame_grid_side(inner.num_frames)
        except ValueError as error:
            raise ValueError(
                f"tiled_adapters[{index}] is True, but level {index - 1} has {inner.num_frames} frames, which do not "
                "fill a square of tiles; set it to False."
            ) from error
