# SPDX-License-Identifier: Apache-2.0
"""The `sigma_data` of levels that predict a residual: the standard deviation of what they add to the enlarged inner
level.
"""

import contextlib
import itertools
import logging

import torch

from ...schedulers.block_averages import enlarge
from ...schedulers.predictions import RESIDUALS, level_predictions
from ...schedulers.scheduling_matryoshka import MatryoshkaScheduler
from ..data.order import BatchOrder
from ..data.sources import TrainingImages
from ..recipe.stage import StageRecipe
from ..state.run import Run
from .step import clean_pyramid

NUM_IMAGES = 512  # on all processes together; the relative error of a standard deviation is then a few percent

logger = logging.getLogger(__name__)


def fix_sigma_data(run: Run, stage: StageRecipe, images: TrainingImages, order: BatchOrder) -> None:
    """Set the scheduler's `sigma_data` for the levels of a stage: the recipe's value, or else a measured one.

    Each level is measured only once in a run, so that a resumed run continues with the same values.

    Args:
        run: the run, within the stage.
        stage: the stage that begins or continues.
        images: its training images.
        order: the order of its batches on this process.
    """
    kinds = level_predictions(run.scheduler.config["prediction_type"], stage.levels)
    if not set(kinds).intersection(RESIDUALS) or "sigma_data" in run.recipe.scheduler:
        return
    known = run.progress.sigma_data
    if len(known) < stage.levels - 1:
        known += residual_deviations(run, stage, images, order)[len(known) :]
        logger.info(
            "Standard deviation of the outer levels' residuals: %s.",
            ", ".join(f"{sigma:.4f}" for sigma in known),
        )
    run.progress.sigma_data = known
    run.scheduler = MatryoshkaScheduler.from_config(run.scheduler.config, sigma_data=list(known))


def residual_deviations(run: Run, stage: StageRecipe, images: TrainingImages, order: BatchOrder) -> tuple[float, ...]:
    """Return the root mean square difference of each outer level from the enlarged level inside it, in training
    images, innermost first.
    """
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
    # `sigma_data` must be positive, even if a level adds nothing to any image.
    return tuple((total / count).sqrt().clamp(min=1e-3).tolist())
