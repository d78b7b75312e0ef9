# SPDX-License-Identifier: Apache-2.0
"""Pictures drawn during training: the recipe's validation prompts at every level, as one grid."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

import torch
from PIL import Image

from .averaging import averaged_weights
from .run import Run


def draw_validation_grid(run: Run) -> Path | None:
    """Draw the validation prompts with the averaged weights and save `samples/step-<n>.png`, or do nothing without.

    The starting noise is the same every time, so that grids of different steps compare.
    """
    settings = run.recipe.validation
    if not settings.prompts or not run.accelerator.is_main_process:
        return None
    pipeline = run.pipeline()
    pipeline.set_progress_bar_config(disable=True)
    with averaged_weights(run), torch.random.fork_rng(devices=[]):
        result = pipeline(
            prompt=list(settings.prompts),
            num_inference_steps=settings.num_inference_steps,
            guidance_scale=settings.guidance_scale,
            generator=[torch.Generator().manual_seed(seed) for seed in range(len(settings.prompts))],
            output_pyramid=True,
        )
    path = run.options.output_dir / "samples" / f"step-{run.progress.total_steps:07d}.png"
    path.parent.mkdir(parents=True, exist_ok=True)
    image_grid(cast(Any, result).pyramid).save(path)
    return path


def image_grid(levels: Sequence[Sequence[Image.Image]], side: int = 128) -> Image.Image:
    """One row per level (innermost first), one column per picture, each enlarged to `side` with hard pixels."""
    grid = Image.new("RGB", (side * len(levels[0]), side * len(levels)), "white")
    for row, pictures in enumerate(levels):
        for column, picture in enumerate(pictures):
            grid.paste(picture.resize((side, side), Image.Resampling.NEAREST), (column * side, row * side))
    return grid
