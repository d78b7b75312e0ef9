# SPDX-License-Identifier: Apache-2.0
"""Results of the stages of a run, read from its history: steps, images, settings, reasons for ending, final losses."""

import dataclasses
import re
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from ..recipe.fields import with_new_names
from ..recipe.recipe import Recipe
from ..recipe.stage import StageRecipe
from .described_settings import describe_extra_losses, weighting_settings

SETTINGS = "settings"


@dataclasses.dataclass(frozen=True)
class Stretch:
    """A part of a stage that was trained with the same settings, according to the history.

    A stopped run can be resumed with another learning rate, batch size or number of processes; its stage then has one
    stretch before and one after.

    Attributes:
        stage: the stage of the recipe, used for whatever the history does not contain.
        steps: optimizer steps; None if the history does not contain them, for example if the file was lost.
        images: images over all processes; None like `steps`.
        settings: as written by `stretch_settings`.
        why_ended: why the stage ended, for its last stretch.
    """

    stage: StageRecipe
    steps: int | None
    images: int | None
    settings: Mapping[str, Any]
    why_ended: str | None = None


class LevelLoss(NamedTuple):
    """The final losses of one level; None if they were not measured."""

    training: float | None
    validation: float | None


def stretch_settings(
    recipe: Recipe, stage: StageRecipe, num_processes: int, mixed_precision: str, seed: int
) -> dict[str, Any]:
    """Return the settings of a stage of a recipe that go into the history for the model card."""
    return {
        "learning_rate": stage.learning_rate,
        "lr_scheduler": stage.lr_scheduler,
        "images_per_step": stage.images_per_step * num_processes,
        **weighting_settings(stage),
        "extra_losses": describe_extra_losses(recipe, stage),
        "batch_size": stage.batch_size,
        "joint_images": stage.joint_images,
        "num_processes": num_processes,
        "mixed_precision": mixed_precision,
        "seed": seed,
    }


def stage_results(
    stages: Sequence[StageRecipe],
    entries: Sequence[Mapping[str, Any]],
    stage_ends: Sequence[str],
    default: Mapping[str, Mapping[str, Any]] | None = None,
) -> list[Stretch]:
    """Return the stretches of every stage, in the order of the recipe, with their lengths and why the stage ended.

    Args:
        stages: stages of the recipe, in order.
        entries: lines of the history, oldest first; `step` and `images` count from the start of the run.
        stage_ends: "<name>: <why>" of the finished stages, in order.
        default: settings by stage, used if the history has none.
    """
    names = [stage.name for stage in stages]
    found, results, is_known = _stretches(entries), list[Stretch](), True
    for position, stage in enumerate(stages):
        default_settings = (default or {}).get(stage.name, {})
        # Stages with the same name cannot be told apart.
        parts = found.get(stage.name, []) if names.count(stage.name) == 1 else []
        stretches = []
        for part in parts:
            # If the previous stage left no lines, a stage whose own line does not say where it began may have begun
            # anywhere.
            known = part.before is not None and (is_known or bool(part.settings))
            steps, images = _difference(part) if known else (None, None)
            stretches.append(Stretch(stage, steps, images, {**default_settings, **part.settings}))
        stretches = stretches or [Stretch(stage, None, None, default_settings)]
        if position < len(stage_ends):
            why = stage_ends[position].removeprefix(f"{stage.name}: ")
            stretches[-1] = dataclasses.replace(stretches[-1], why_ended=why)
        results += stretches
        is_known = bool(parts)
    return results


def _difference(part: "_Part") -> tuple[int, int]:
    assert part.before is not None
    return part.after[0] - part.before[0], part.after[1] - part.before[1]


class _Part(NamedTuple):
    """A stretch: steps and images before and after it, and its settings; `before` is None if unknown."""

    before: tuple[int, int] | None
    after: tuple[int, int]
    settings: Mapping[str, Any]


def _stretches(entries: Sequence[Mapping[str, Any]]) -> dict[str, list[_Part]]:
    """Return the stretches of each stage, without those in which nothing was trained."""
    found: dict[str, list[_Part]] = {}
    stage: str | None = None
    settings: Mapping[str, Any] = {}
    before: tuple[int, int] | None = (0, 0)
    last = (0, 0)

    def close() -> None:
        if stage is not None and last != before:
            found.setdefault(stage, []).append(_Part(before, last, settings))

    for entry in entries:
        told, here = entry.get(SETTINGS), (entry["step"], entry.get("images", last[1]))
        told = with_new_names(told, StageRecipe.RENAMED) if isinstance(told, Mapping) else None
        if told is not None and stage is not None:
            last = here  # the previous stretch ended here
        if entry["stage"] != stage or (told is not None and _differs(told, settings)):
            close()
            # A file that was lost and started again says where it begins, but not where the stage began.
            before = None if told is not None and stage is None and here != (0, 0) else last
            stage, settings = entry["stage"], told or {}
        last = here
    close()
    return found


def _differs(settings: Mapping[str, Any], others: Mapping[str, Any]) -> bool:
    """Return whether a setting has two values; one that only the newer version of this package recorded has not."""
    common = settings.keys() & others.keys()
    return settings != others and (not common or any(settings[name] != others[name] for name in common))


def final_losses(entries: Sequence[Mapping[str, Any]], num_levels: int) -> list[LevelLoss]:
    """Return the last finite losses of each level, innermost first."""
    newest: dict[str, float] = {}
    for entry in entries:
        newest.update((name, value) for name, value in entry.items() if value is not None)
    return [
        LevelLoss(newest.get(f"loss/level_{level}"), newest.get(f"validation_loss/level_{level}"))
        for level in range(num_levels)
    ]


def final_metrics(entries: Sequence[Mapping[str, Any]]) -> dict[str, dict[int, float]]:
    """Return the last values of validation metrics by name and side in pixels, smallest first."""
    found: dict[str, dict[int, float]] = {}
    for entry in entries:
        for key, value in entry.items():
            name = re.fullmatch(r"validation_(\w+)/(\d+)px", key)
            if name is not None and value is not None:
                found.setdefault(name[1], {})[int(name[2])] = value
    return {name: dict(sorted(values.items())) for name, values in found.items()}
