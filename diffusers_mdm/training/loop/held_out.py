# SPDX-License-Identifier: Apache-2.0
"""The validation loss of a run, with its averaged weights on held-out data."""

from dataclasses import replace

import torch

from ...models.level_config import NOISE_LEVEL
from ...pyramid import Pyramid
from ..data.batch import Batch
from ..loss.held_out import HeldOutSamples, validation_loss_table
from ..loss.pyramid_loss import level_means, table_values
from ..modules.small_images import small_images
from ..recipe.stage import StageRecipe
from ..state.averages import averaged_weights
from ..state.run import Run
from .step import clean_pyramid, predict


def measure_validation_loss(
    run: Run, stage: StageRecipe, held_out: HeldOutSamples[Batch]
) -> tuple[list[float], dict[str, float]]:
    """Return the error of v of each level with the averaged weights, and all values for logging.

    Every process must call this; all get the same numbers.
    """
    process = run.accelerator
    with averaged_weights(run):
        table = validation_loss_table(
            lambda noisy, timesteps, batch: predict_held_out(run, stage, noisy, timesteps, batch),
            run.scheduler,
            held_out,
            clean_levels=lambda pixels: clean_pyramid(run, stage, pixels),
            num_levels=stage.levels,
            batch_size=stage.batch_size,
            rank=process.process_index,
            world=process.num_processes,
            device=process.device,
            modules=[run.model] if run.model is not None else [],
        )
    if process.num_processes > 1:
        table = process.reduce(table, "sum")
    # Every level has samples, so no mean is missing.
    losses = [mean if mean is not None else float("nan") for mean in level_means(table)]
    return losses, table_values(table, "validation_loss")


def predict_held_out(run: Run, stage: StageRecipe, noisy: Pyramid, timesteps: torch.Tensor, batch: Batch) -> Pyramid:
    """Return the model's output for held-out data; for super-resolution given the small images without noise."""
    batch, settings = batch.to(run.accelerator.device), run.recipe.super_resolution
    if settings is None:
        return predict(run, noisy, timesteps, batch)
    small = small_images(clean_pyramid(run, stage, batch.pixels)[-1], settings)
    without_noise = {**batch.micro_conditioning, NOISE_LEVEL: torch.zeros_like(timesteps, dtype=torch.float32)}
    return predict(run, noisy, timesteps, replace(batch, micro_conditioning=without_noise), small)
