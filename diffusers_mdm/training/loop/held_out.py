# SPDX-License-Identifier: Apache-2.0
"""The validation loss of a run: its averaged weights on the held-out pictures or clips."""

from ...pipelines.drawing.latent_space import scale_factor
from ..data.batch import Batch
from ..loss.held_out import HeldOutSamples, validation_loss_table
from ..loss.tables import level_means, table_values
from ..modules.classes import check_class_labels
from ..recipe.stage import StageRecipe
from ..state.averages import averaged_weights
from ..state.run import Run
from .clean_levels import clean_pyramid
from .stage_data import Embeddings, open_held_out_images
from .step import predict


def open_held_out(run: Run, stage: StageRecipe, embeddings: Embeddings) -> HeldOutSamples[Batch] | None:
    """The held-out pictures or clips of a stage; None if it has none."""
    images = open_held_out_images(run.recipe, stage, embeddings, scale_factor(run.vae))
    if images is None:
        return None

    def load(rows: list[int]) -> Batch:
        batch = images.load(rows)
        check_class_labels(batch.class_labels, run.unet.config["num_class_embeds"])
        return batch

    return HeldOutSamples(load, len(images), run.recipe.validation.num_loss_images, run.options.seed)


def measure_validation_loss(
    run: Run, stage: StageRecipe, held_out: HeldOutSamples[Batch]
) -> tuple[list[float], dict[str, float]]:
    """Error of v of each level with the averaged weights, and all values as they are logged.

    Every process has to ask; all get the same numbers.
    """
    process = run.accelerator
    with averaged_weights(run):
        table = validation_loss_table(
            lambda noisy, timesteps, batch: predict(run, noisy, timesteps, batch.to(process.device)),
            run.scheduler,
            held_out,
            run.unet.sample_sizes[: stage.levels],
            clean_levels=lambda pixels: clean_pyramid(run, stage, pixels),
            batch_size=stage.batch_size,
            rank=process.process_index,
            world=process.num_processes,
            device=process.device,
            modules=[run.model] if run.model is not None else [],
        )
    if process.num_processes > 1:
        table = process.reduce(table, "sum")
    # Every level has pictures, so no mean is missing.
    losses = [mean if mean is not None else float("nan") for mean in level_means(table)]
    return losses, table_values(table, "validation_loss")
