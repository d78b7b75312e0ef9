# SPDX-License-Identifier: Apache-2.0
"""How much the outer levels add to the enlarged inner ones: the `sigma_data` of levels that predict a residual."""

import contextlib
import itertools
import logging

import torch

from ...schedulers.block_averages import enlarge
from ...schedulers.predictions import level_predictions
from ...schedulers.scheduling_matryoshka import MatryoshkaScheduler
from ..data.order import BatchOrder
from ..data.sources import TrainingImages
from ..recipe.stage import StageRecipe
from ..state.run import Run
from .step import clean_pyramid

NUM_IMAGES = 512  # of all processes together: the standard error of a deviation is then a few percent of it

logger = logging.getLogger(__name__)


def fix_sigma_data(run: Run, stage: StageRecipe, images: TrainingImages, order: BatchOrder) -> None:
    """Give the scheduler the `sigma_data` of the stage's levels, measured unless the recipe says what it is.

    What was measured once stays for the whole run, so that a resumed run goes on with the same.

    Args:
        run: in the stage.
        stage: that begins or goes on.
        images: what it trains on.
        order: how this process takes part in its steps.
    """
    kinds = level_predictions(run.scheduler.config["prediction_type"], stage.levels)
    if "residual" not in kinds or "sigma_data" in run.recipe.scheduler:
        return
    known = run.progress.sigma_data
    if len(known) < stage.levels - 1:
        known += residual_deviations(run, stage, images, order)[len(known) :]
        logger.info(
            "Standard deviation of what the outer levels add: %s.", ", ".join(f"{sigma:.4f}" for sigma in known)
        )
    run.progress.sigma_data = known
    run.scheduler = MatryoshkaScheduler.from_config(run.scheduler.config, sigma_data=list(known))


def residual_deviations(run: Run, stage: StageRecipe, images: TrainingImages, order: BatchOrder) -> tuple[float, ...]:
    """Root mean square of each outer level of true pictures less the enlarged level inside it, innermost first."""
    sums = torch.zeros(2, stage.levels - 1, device=run.accelerator.device)
    wanted = -(-NUM_IMAGES // (order.batch_size * order.world))
    with contextlib.closing(images.batches(order, 0, 0)) as batches:
        for batch in itertools.islice(batches, wanted):
            levels = clean_pyramid(run, stage, batch.pixels.to(run.accelerator.device))
            for index, (inner, outer) in enumerate(itertools.pairwise(levels)):
                rest = outer - enlarge(inner, outer)
                sums[0, index] += rest.square().sum()
                sums[1, index] += rest.numel()
    total, count = run.accelerator.reduce(sums, "sum")
    # A level that adds nothing to any picture still needs a scale.
    return tuple((total / count).sqrt().clamp(min=1e-3).tolist())
