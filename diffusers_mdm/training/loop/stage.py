# SPDX-License-Identifier: Apache-2.0
"""One stage of training, from extending the model to the last step."""

import contextlib
import functools
import itertools
import logging
from collections.abc import Generator, Iterator

import torch

from ...processes import wait_for_everyone
from ..data.batch import Batch
from ..data.order import BatchOrder
from ..data.skip_budget import SkipBudget
from ..data.sources import TrainingImages
from ..recipe.stage import StageRecipe
from ..reports.meter import Meter
from ..reports.stage_results import stretch_settings
from ..reports.validation_grid import draw_validation_grid, grid_path
from ..seeds import derive_seed
from ..state.checkpoints import WRITE_ERRORS, save_checkpoint
from ..state.optimizer import learning_rate_factor
from ..state.post_hoc.snapshots import save_snapshot
from ..state.progress import ALL_STEPS, Progress
from ..state.run import Run
from .held_out import measure_validation_loss
from .interruption import Interruption, RunInterrupted
from .plateau import Plateau
from .residuals import fix_sigma_data
from .stage_data import StageData
from .stage_setup import begin_stage, end_stage
from .step import StepPlan, optimizer_step, plan_steps
from .validation_metrics import ValidationMetrics, measure_validation_metrics, outermost_value

logger = logging.getLogger(__name__)


def train_stage(run: Run, stage: StageRecipe, data: StageData, interruption: Interruption) -> None:
    """Train `stage` from the point recorded in `run.progress` to its end, and record why it ended.

    Args:
        run: the run, between stages.
        stage: the next stage.
        data: its data.
        interruption: checked after every step.

    Raises:
        FloatingPointError: if `max_skipped_steps` consecutive steps had non-finite gradients; a checkpoint is saved.
        RunInterrupted: if the run was stopped by a signal; a checkpoint is saved.
    """
    begin_stage(run, stage)
    fix_sigma_data(run, stage, data.images, batch_order(run, stage))
    progress, last_step = run.progress, run.progress.last_step(stage, run.accelerator.num_processes)
    progress.stage_ended = why_over(stage, progress, last_step)
    if progress.stage_step > 0:
        draw_what_was_lost(run)
    budgets = [opened.skipped for opened in (data.images, data.joint_images) if opened is not None]
    plan = plan_steps(run, stage)
    batches = step_batches(run, plan, data)
    with contextlib.closing(batches), new_meter(run, stage, last_step) as meter:
        while progress.stage_ended is None:
            with meter.waiting_for_data():
                micro_batches, beside = next(batches)
            try:
                tables = optimizer_step(run, plan, micro_batches, beside)
            except FloatingPointError:
                keep_checkpoint(run, needed=True)
                raise
            meter.record(
                tables.samples,
                joint_losses=tables.joint_images,
                values={f"loss/{name}": error for name, error in (tables.extra or {}).items()},
                step=progress.total_steps,
                images=progress.total_images,
                learning_rate=learning_rate_of(run, stage),
                skipped_steps=progress.skipped_steps,
                skipped_images=functools.partial(SkipBudget.count_everywhere, budgets),
            )
            with meter.paused():
                progress.stage_ended = why_ended(run, stage, last_step, data, meter)
                keep_what_is_due(run, interruption, meter, data.metrics)
    logger.info("Stage %s ended after %d steps: %s.", stage.name, progress.stage_step, progress.stage_ended)
    end_stage(run, stage)


def why_over(stage: StageRecipe, progress: Progress, last_step: int | None) -> str | None:
    """Return why a resumed stage has already ended; None if there is more to train.

    The recipe may have fewer or more steps than when the checkpoint was saved.
    """
    if last_step is not None and progress.stage_step >= last_step:
        if progress.stage_step == last_step:
            return ALL_STEPS
        return f"{ALL_STEPS}, {progress.stage_step} while the recipe now has {last_step}"
    if stage.until_plateau is None or progress.stage_ended is None or ALL_STEPS in progress.stage_ended:
        return None
    is_over = Plateau(stage.until_plateau, progress.plateau).is_over(progress.stage_step)
    return progress.stage_ended if is_over else None


def draw_what_was_lost(run: Run) -> None:
    """Generate the validation samples of the step from which the run resumes, if it was stopped before that."""
    is_due = samples_are_due(run)
    process = run.accelerator
    is_missing = torch.tensor(float(process.is_main_process and not grid_path(run).exists()), device=process.device)
    # Either all processes generate or none, and the main one may have finished before another one checks.
    if is_due and process.reduce(is_missing, "sum") > 0:
        draw_validation(run)


def step_batches(run: Run, plan: StepPlan, data: StageData) -> Generator[tuple[list[Batch], list[Batch]], None, None]:
    """Yield for every step from the next one on this process's micro-batches, and the `joint_images` of each of
    them.
    """
    size = plan.stage.gradient_accumulation_steps
    beside = None if plan.joint_images is None else plan.joint_images.stage
    with (
        batches_of(run, plan.stage, data.images) as batches,
        batches_of(run, beside, data.joint_images) as joint_images,
    ):
        while True:
            yield list(itertools.islice(batches, size)), list(itertools.islice(joint_images, size))


@contextlib.contextmanager
def batches_of(run: Run, stage: StageRecipe | None, images: TrainingImages | None) -> Iterator[Iterator[Batch]]:
    """Yield this process's micro-batches of a stage from its next step on; none without a stage."""
    if stage is None or images is None:
        yield iter(())
        return
    batches = images.batches(batch_order(run, stage), run.progress.stage_step, run.options.dataloader_num_workers)
    with contextlib.closing(batches):
        yield batches


def new_meter(run: Run, stage: StageRecipe, last_step: int | None) -> Meter:
    """Return the meter of the stage, starting at its current step."""
    progress = run.progress
    return Meter(
        run.accelerator,
        run.history,
        stage.name,
        logging_steps=run.options.logging_steps,
        total=last_step,
        settings=stretch_settings(
            run.recipe,
            stage,
            run.accelerator.num_processes,
            str(run.accelerator.mixed_precision),
            run.options.seed,
        ),
        initial=progress.stage_step,
        step=progress.total_steps,
        images=progress.total_images,
    )


def batch_order(run: Run, stage: StageRecipe) -> BatchOrder:
    """Return the order of batches for this process."""
    process = run.accelerator
    seed = derive_seed(run.options.seed, stage.seed, run.progress.stage_index)
    return BatchOrder(
        stage.batch_size, stage.gradient_accumulation_steps, process.process_index, process.num_processes, seed
    )


def learning_rate_of(run: Run, stage: StageRecipe) -> float:
    """Return the stage's learning rate in the last step."""
    last_step = run.progress.last_step(stage, run.accelerator.num_processes)
    factor = learning_rate_factor(stage, run.progress.stage_step - 1, last_step)
    return stage.learning_rate * factor


def why_ended(run: Run, stage: StageRecipe, last_step: int | None, data: StageData, meter: Meter) -> str | None:
    """Return why the stage ends after this step, None if it continues. Measures the validation loss if it is due, and
    the metric of `until_plateau`.
    """
    progress, held_out = run.progress, data.held_out
    plateau = None
    if stage.until_plateau is not None:
        plateau = Plateau(stage.until_plateau, progress.plateau, stage.levels - 1)
    is_last = last_step is not None and progress.stage_step >= last_step
    is_due = plateau.is_due(progress.stage_step) if plateau else is_last or is_validation_step(run)
    if held_out is not None and is_due:
        losses, values = measure_validation_loss(run, stage, held_out)
        meter.report()  # before the line of the measurement, which belongs to the same step
        if run.accelerator.is_main_process:
            meter.write(values)
        if plateau is not None:
            value = losses[-1]
            if plateau.recipe.metric != "loss":
                values = report_metrics(run, meter, data.metrics)
                value = outermost_value(run, plateau.recipe.metric, values)
            decision = plateau.update(progress.stage_step, value)
            logger.info("Step %d: %s.", progress.stage_step, decision.reason)
            if decision.ended:
                return decision.reason
    return ALL_STEPS if is_last else None


def is_validation_step(run: Run) -> bool:
    """Return whether validation is due after this step."""
    every = run.options.validation_steps or run.options.checkpointing_steps
    return run.progress.total_steps % every == 0


def keep_what_is_due(
    run: Run, interruption: Interruption, meter: Meter, metrics: ValidationMetrics | None = None
) -> None:
    """Save a checkpoint and generate validation samples if they are due; stop the run if there was a signal.

    Raises:
        RunInterrupted: there was a signal; a checkpoint is saved.
    """
    is_last = run.progress.stage_ended is not None
    interrupted = interruption.is_wanted(run.accelerator)
    if run.recipe.post_hoc_ema is not None and (
        is_last or run.progress.total_steps % run.recipe.post_hoc_ema.snapshot_steps == 0
    ):
        keep_snapshot(run)  # first, so that a run that resumes from the checkpoint has it
    if run.progress.total_steps % run.options.checkpointing_steps == 0 or is_last or interrupted:
        meter.report()
        keep_checkpoint(run, needed=interrupted)
    if interrupted:
        raise RunInterrupted(
            f"Stopped by {interruption.received or 'a signal to another process'} after step "
            f"{run.progress.total_steps}; resume with {run.options.resume_command}"
        )
    if samples_are_due(run):
        draw_validation(run)
        if not plateau_has_measured(run):
            report_metrics(run, meter, metrics)


def samples_are_due(run: Run) -> bool:
    """Return whether samples are to be generated after this step: at every validation step, and when a stage ends."""
    ended = run.progress.stage_ended is not None and not run.options.skip_final_inference
    return ended or is_validation_step(run)


def plateau_has_measured(run: Run) -> bool:
    """Return whether `until_plateau` has measured the validation metrics after this step."""
    plateau = run.recipe.stages[run.progress.stage_index].until_plateau
    is_measured = run.progress.plateau.last_step == run.progress.stage_step
    return plateau is not None and plateau.metric != "loss" and is_measured


def report_metrics(run: Run, meter: Meter, metrics: ValidationMetrics | None) -> dict[str, float]:
    """Measure the validation metrics, and write them to the trackers and the history; see
    `measure_validation_metrics`.
    """
    values = measure_validation_metrics(run, metrics)
    if values:
        meter.report()  # before the metrics' own line, which belongs to the same step
        meter.write(values)
    return values


def keep_checkpoint(run: Run, needed: bool) -> None:
    """Save a checkpoint. If it cannot be written and is not `needed`, that is reported and training continues.

    Raises:
        OSError, SafetensorError: if it is needed and cannot be written; older ones are not changed.
    """
    try:
        logger.info("Saved %s.", save_checkpoint(run))
    except WRITE_ERRORS as error:
        if needed:
            raise
        logger.error("No checkpoint at step %d, training continues: %s", run.progress.total_steps, error)
    wait_for_everyone(run.accelerator)


def keep_snapshot(run: Run) -> None:
    """Save a snapshot of the power-function averages; if it cannot be written, that is reported and training
    continues.
    """
    try:
        save_snapshot(run)
    except WRITE_ERRORS as error:
        logger.error("No snapshot of the averages at step %d, training continues: %s", run.progress.total_steps, error)
    wait_for_everyone(run.accelerator)


def draw_validation(run: Run) -> None:
    """Generate validation samples on the main process; the others wait."""
    draw_validation_grid(run)
    wait_for_everyone(run.accelerator)
