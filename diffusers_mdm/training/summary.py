# SPDX-License-Identifier: Apache-2.0
"""The resolved run in words, for `--dry_run`."""

from .engine import build_unet, stage_side
from .recipe import Recipe


def describe_run(recipe: Recipe) -> str:
    """Stages with steps, images and sides, and parameters of each level and of the text modules."""
    unet = build_unet(recipe, len(recipe.levels))
    lines = [f"{recipe.name}: {len(recipe.levels)} level(s), data {recipe.data.path}"]
    for position, level in enumerate(unet.levels):
        count = sum(parameter.numel() for parameter in level.parameters())
        lines.append(f"  level {position}: {stage_side(recipe, position + 1)} pixels, {count:,} parameters")
    total = sum(parameter.numel() for parameter in unet.parameters())
    in_levels = sum(parameter.numel() for parameter in unet.levels.parameters())
    lines.append(f"  shared text modules: {total - in_levels:,} parameters; U-Net in all: {total:,}")
    for stage in recipe.stages:
        images = stage.steps * stage.images_per_step
        lines.append(
            f"  stage {stage.name}: levels 0-{stage.levels - 1}, {stage_side(recipe, stage.levels)} pixels, "
            f"{stage.steps:,} steps x {stage.images_per_step} = {images:,} images a process, "
            f"rows per level {list(stage.rows_per_level)}, weights {list(stage.weights)}, "
            f"{stage.loss_weighting} loss, lr {stage.learning_rate:g} {stage.lr_scheduler}"
        )
    return "\n".join(lines)
