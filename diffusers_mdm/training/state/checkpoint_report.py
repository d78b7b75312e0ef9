# SPDX-License-Identifier: Apache-2.0
"""The contents of a checkpoint's `progress.json`, checked before they are used.

The file may be damaged, edited, or of a newer version, so all values are checked by type and range, and against the
recipe, before a run starts from it.
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..recipe.fields import FieldError, read_fields
from ..recipe.recipe import Recipe
from ..recipe.resuming import Resumption, Saved, compare_with_checkpoint
from ..recipe.stage import StageRecipe
from .checkpoint_folders import PROGRESS_FILE
from .progress import ALL_STEPS, Progress, check_progress


@dataclass(frozen=True)
class CheckpointReport:
    """Everything in a checkpoint that is not a tensor."""

    progress: Progress
    averages: dict[str, Any]  # number of updates of the averages of each trained module
    scaler: dict[str, Any] | None  # scale of the loss, in fp16
    num_levels: int
    recipe: dict[str, Any]  # the recipe at that time
    seed: int | None = None  # seed given to the command; None for older versions, which did not save it


def read_report(checkpoint: Path) -> CheckpointReport:
    """Read and check the report of a checkpoint.

    Raises:
        ValueError: something in it is unknown, missing, of the wrong type, or invalid.
    """
    file = checkpoint / PROGRESS_FILE
    try:
        report = read_fields(CheckpointReport, json.loads(file.read_text(encoding="utf-8")))
        progress = check_progress(report.progress)
        for name, steps in report.averages.items():
            if type(steps) is not int or not 0 <= steps <= progress.total_steps:
                raise FieldError(f"averages.{name}", f"must be 0 to {progress.total_steps} steps, got {steps!r}.")
        for name, value in (report.scaler or {}).items():
            if type(value) not in (int, float) or not 0 <= value < float("inf"):
                raise FieldError(f"scaler.{name}", f"must be a number, got {value!r}.")
    except (OSError, ValueError, RecursionError) as error:
        raise ValueError(
            f"{file}: {error} The file was edited, or written by another version of diffusers_mdm: train with that "
            "version, resume from another checkpoint (--resume_from_checkpoint <name>), or start over with "
            "--resume_from_checkpoint none."
        ) from error
    return report


def compare(report: CheckpointReport, checkpoint: Path, recipe: Recipe, seed: int) -> Resumption:
    """Compare a recipe with a checkpoint; see `compare_with_checkpoint`.

    Raises:
        ValueError: the run cannot be resumed from there.
    """
    index, levels = report.progress.stage_index, report.num_levels
    resumption = compare_with_checkpoint(
        recipe, seed, Saved(str(checkpoint), report.recipe, index, levels, report.seed)
    )
    stage = resumption.recipe.stages[index]
    if levels != stage.levels:
        raise ValueError(
            f"{checkpoint} says that its model has {levels} levels, but its stage {stage.name!r} trains "
            f"{stage.levels}: {PROGRESS_FILE} was edited. Resume from another checkpoint."
        )
    return resumption


def why_too_far(report: CheckpointReport, recipe: Recipe) -> str | None:
    """Return why a checkpoint is too late to train everything in the recipe, as part of a sentence; None if it is
    not.
    """
    for position, stage in enumerate(recipe.stages[: report.progress.stage_index]):
        problem = _why_unfinished(stage, position, report.progress)
        if problem is not None:
            return problem
    return None


def _why_unfinished(stage: StageRecipe, position: int, progress: Progress) -> str | None:
    """Return why a finished stage is too short for the recipe, which may have been changed; None if it is not."""
    steps, images = progress.finished_steps[position], progress.finished_images[position]
    if steps is None or images is None:
        return None  # older versions did not save it
    if (stage.steps is not None and steps >= stage.steps) or (stage.images is not None and images >= stage.images):
        return None
    if stage.until_plateau is not None and ALL_STEPS not in progress.stage_ends[position]:
        return None
    wanted = f"{stage.steps} steps" if stage.steps is not None else f"{stage.images} images"
    return (
        f"stage {stage.name!r} had ended after {steps} steps ({images} images) when the next one began, but the "
        f"recipe now has {wanted}."
    )
