# SPDX-License-Identifier: Apache-2.0
"""The validation loss of a run, with its averaged weights on held-out data."""

from ..data.batch import Batch
from ..loss.held_out import HeldOutSamples, validation_loss_table
from ..loss.pyramid_loss import level_means, table_values
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
            lambda noisy, timesteps, batch: predict(run, noisy, timesteps, batch.to(process.device)),
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
