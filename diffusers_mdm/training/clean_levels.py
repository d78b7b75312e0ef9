# SPDX-License-Identifier: Apache-2.0
"""From what the data side loads to the clean levels that a stage's model learns."""

import torch

from ..pyramid import Pyramid, build_pyramid
from .image_decoding import to_unit_range
from .recipe_stage import StageRecipe
from .run import Run


def clean_pyramid(run: Run, stage: StageRecipe, pixels: torch.Tensor) -> Pyramid:
    """Take pictures or clips down to every level of a stage.

    Args:
        run: whose U-Net says how large the levels are, and how many frames they have.
        stage: how many levels there are.
        pixels: uint8 `(B, 3, S, S)`, or `(B, 3, F, S, S)` for clips, as large as the outermost level.

    Returns:
        Levels in [-1, 1], innermost first, all with B rows.
    """
    frames = run.unet.level_frames[: stage.levels] if pixels.ndim == 5 else None
    return build_pyramid(to_unit_range(pixels), run.unet.sample_sizes[: stage.levels], frames)
