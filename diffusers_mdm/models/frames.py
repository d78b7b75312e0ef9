# SPDX-License-Identifier: Apache-2.0
"""Conversions between layouts of clips: `(B, C, F, H, W)`; frames as part of the batch; frames tiled in one image.

In the batch, frame f of clip b is sample b * F + f. Tiles are arranged row by row in a square, as in the published
video models (ml-mdm, Video).
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch


def fold_frames(level: torch.Tensor) -> tuple[torch.Tensor, int]:
    """Convert `(B, C, F, H, W)` to `(B F, C, H, W)`; return that and F."""
    return level.transpose(1, 2).flatten(0, 1), level.shape[2]


def unfold_frames(frames: torch.Tensor, num_frames: int) -> torch.Tensor:
    """Convert `(B F, C, H, W)` to `(B, C, F, H, W)`: the inverse of `fold_frames`."""
    return frames.unflatten(0, (-1, num_frames)).transpose(1, 2)


def tile_frames(clip: torch.Tensor) -> torch.Tensor:
    """Arrange frames row by row in a square image: `(B, C, S * S, H, W)` → `(B, C, S * H, S * W)`.

    Raises:
        ValueError: the number of frames is not a square.
    """
    side = frame_grid_side(clip.shape[2])
    return clip.unflatten(2, (side, side)).permute(0, 1, 2, 4, 3, 5).flatten(4, 5).flatten(2, 3)


def untile_frames(image: torch.Tensor, num_frames: int) -> torch.Tensor:
    """Cut an image into frames: `(B, C, S * H, S * W)` → `(B, C, S * S, H, W)`, the inverse of `tile_frames`.

    Raises:
        ValueError: the number of frames is not a square, or its root does not divide the sides.
    """
    side = frame_grid_side(num_frames)
    height, width = image.shape[2:]
    if height % side or width % side:
        raise ValueError(
            f"An image of {height} x {width} cannot be cut into {side} x {side} frames; both sides must be multiples "
            f"of {side}."
        )
    tiles = image.unflatten(3, (side, width // side)).unflatten(2, (side, height // side))
    return tiles.permute(0, 1, 2, 4, 3, 5).flatten(2, 3)


def frame_grid_side(num_frames: int) -> int:
    """Return the number of frames in each row of a square of `num_frames` tiles.

    Raises:
        ValueError: the tiles do not fill a square.
    """
    side = math.isqrt(num_frames)
    if side * side != num_frames:
        raise ValueError(f"{num_frames} frames do not fill a square of tiles; expected 1, 4, 9, 16, …")
    return side


def on_tiled_frames(
    layer: Callable[[torch.Tensor], torch.Tensor], frames: torch.Tensor, num_frames: int
) -> torch.Tensor:
    """Apply a layer that keeps height and width to tiled frames: `(B F, C, H, W)` → `(B F, C', H, W)`."""
    image = layer(tile_frames(unfold_frames(frames, num_frames)))
    return fold_frames(untile_frames(image, num_frames))[0]
