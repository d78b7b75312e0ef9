# SPDX-License-Identifier: Apache-2.0
"""The progress of a run: its counters, and checks of their values."""

import math
from dataclasses import dataclass, field

from ..recipe.fields import FieldError
from ..recipe.stage import StageRecipe

ALL_STEPS = "all its steps were done"
_MOST = 10**15


@dataclass
class PlateauState:
    """The state of `until_plateau` between measurements.

    All fields are finite numbers or None, so that JSON stores them exactly.
    """

    measurements: int = 0  # finite ones
    average: float = 0.0  # running mean that started at 0, before its correction
    best: float | None = None  # lowest smoothed loss that counted as a gain
    best_step: int = 0
    without_gain: int = 0  # measurements in a row
    last_step: int | None = None


@dataclass
class Progress:
    """The progress of a run, in optimizer steps and in images seen (over all processes)."""

    stage_index: int = 0
    stage_step: int = 0
    stage_images: int | None = None  # None in checkpoints of older versions: computed from the steps
    total_steps: int = 0
    total_images: int = 0
    skipped_steps: int = 0
    skipped_in_a_row: int = 0
    stage_ended: str | None = None  # why the current stage has ended, if it has
    stage_ends: tuple[str, ...] = ()  # "<name>: <why>" of each finished stage
    finished_steps: tuple[
        int | None, ...
    ] = ()  # of each finished stage; None for older versions, which did not save it
    finished_images: tuple[int | None, ...] = ()
    plateau: PlateauState = field(default_factory=PlateauState)  # of the current stage
    sigma_data: tuple[float, ...] = ()  # of the outer levels' residuals, where the run has measured it

    def images_of(self, stage: StageRecipe, num_processes: int = 1) -> int:
        """Return the number of images that the current stage has seen."""
        if self.stage_images is not None:
            return self.stage_images
        return self.stage_step * stage.images_per_step * num_processes

    def count_step(self, stage: StageRecipe, num_processes: int = 1) -> None:
        """Count an optimizer step of the current stage and its images."""
        images = stage.images_per_step * num_processes
        self.stage_images = self.images_of(stage, num_processes) + images
        self.total_images += images
        self.stage_step += 1
        self.total_steps += 1

    def last_step(self, stage: StageRecipe, num_processes: int = 1) -> int | None:
        """Return the maximum number of steps of the current stage; None if only `until_plateau` ends it.

        If it ends by images, those that it has seen count, however many there were per step.
        """
        limits = [] if stage.steps is None else [stage.steps]
        if stage.images is not None:
            left = max(0, stage.images - self.images_of(stage, num_processes))
            limits.append(self.stage_step + math.ceil(left / (stage.images_per_step * num_processes)))
        return min(limits) if limits else None

    def finish_stage(self, stage: StageRecipe, num_processes: int = 1) -> None:
        """Advance to the next stage, and record why and after how much this one ended."""
        self.stage_ends += (f"{stage.name}: {self.stage_ended}",)
        self.finished_steps += (self.stage_step,)
        self.finished_images += (self.images_of(stage, num_processes),)
        self.stage_index += 1
        self.stage_step, self.stage_images, self.stage_ended = 0, 0, None
        self.plateau = PlateauState()


def check_progress(progress: Progress) -> Progress:
    """Check counters that were read from a file.

    Returns:
        `progress`, with values that older versions did not save filled in.

    Raises:
        ValueError: names the counter, its value and what was expected.
    """
    _check_ranges(progress)
    index = progress.stage_index
    if len(progress.stage_ends) != index:
        raise FieldError("progress.stage_ends", f"has {len(progress.stage_ends)} entries for {index} finished stages.")
    for name in ("finished_steps", "finished_images"):
        column = getattr(progress, name)
        if len(column) not in (0, index):
            raise FieldError(f"progress.{name}", f"has {len(column)} entries for {index} finished stages.")
        setattr(progress, name, column or (None,) * index)
    _check_sums(progress)
    return progress


def _check_ranges(progress: Progress) -> None:
    """Check that numbers are not negative, finite, and not larger than in any run."""
    columns = {name: getattr(progress, name) for name in ("finished_steps", "finished_images")}
    numbers = {**vars(progress), **{f"plateau.{name}": value for name, value in vars(progress.plateau).items()}}
    numbers |= {f"{name}[{place}]": value for name, column in columns.items() for place, value in enumerate(column)}
    for place, sigma in enumerate(progress.sigma_data):
        if not 0 < sigma <= _MOST:
            raise FieldError(f"progress.sigma_data[{place}]", f"must be positive, got {sigma}.")
    for name, number in numbers.items():
        if isinstance(number, float) and not math.isfinite(number):
            raise FieldError(f"progress.{name}", f"must be finite, got {number}.")
        if isinstance(number, int) and not 0 <= number <= _MOST:
            raise FieldError(f"progress.{name}", f"must be a number from 0 to {_MOST:,}, got {number:,}.")


def _check_sums(progress: Progress) -> None:
    """Check that counters do not contradict each other."""
    for total, parts in (
        ("total_steps", (*progress.finished_steps, progress.stage_step)),
        ("total_images", (*progress.finished_images, progress.stage_images)),
    ):
        found, known = getattr(progress, total), sum(part or 0 for part in parts)
        if found < known or (None not in parts and found != known):
            raise FieldError(f"progress.{total}", f"is {found}, but those of the stages add up to {known}.")
    steps = progress.total_steps
    if progress.total_images < steps:
        raise FieldError(
            "progress.total_images",
            f"is {progress.total_images}, but there are {steps} steps with at least one image each.",
        )
    if max(progress.skipped_steps, progress.skipped_in_a_row) > steps:
        raise FieldError("progress.skipped_steps", f"are {progress.skipped_steps}, more than the {steps} steps.")
    measured = max(progress.plateau.last_step or 0, progress.plateau.best_step)
    if measured > progress.stage_step:
        raise FieldError("progress.plateau", f"was measured at step {measured} of the {progress.stage_step} steps.")
