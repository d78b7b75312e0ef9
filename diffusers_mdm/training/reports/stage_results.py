# SPDX-License-Identifier: Apache-2.0
"""What came of the stages of a run, read from its history: steps, images, settings, reasons and last losses."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from ..recipe.stage import StageRecipe

SETTINGS = "settings"


@dataclasses.dataclass(frozen=True)
class Stretch:
    """A part of a stage that was trained in one way, as the history tells.

    A run that was stopped can go on with another learning rate, batch or number of processes; its stage then has a
    stretch before and one after.

    Attributes:
        stage: of the recipe; what the history does not tell is taken from it.
        steps: optimizer steps; None where the history does not tell, as after the file was lost.
        images: over all processes; None as for `steps`.
        settings: as `stretch_settings` wrote them.
        why_ended: why the stage ended, at its last stretch.
    """

    stage: StageRecipe
    steps: int | None
    images: int | None
    settings: Mapping[str, Any]
    why_ended: str | None = None


class LevelLoss(NamedTuple):
    """The last losses of one level; None where they were not measured."""

    training: float | None
    validation: float | None


def stretch_settings(stage: StageRecipe, num_processes: int, mixed_precision: str, seed: int) -> dict[str, Any]:
    """How a stage is trained from now on, for the history, as far as the model card tells of it."""
    return {
        "learning_rate": stage.learning_rate,
        "lr_scheduler": stage.lr_scheduler,
        "images_per_step": stage.images_per_step * num_processes,
        "loss_weighting": stage.loss_weighting,
        "batch_size": stage.batch_size,
        "joint_pictures": stage.joint_pictures,
        "num_processes": num_processes,
        "mixed_precision": mixed_precision,
        "seed": seed,
    }


def stage_results(
    stages: Sequence[StageRecipe],
    rows: Sequence[Mapping[str, Any]],
    stage_ends: Sequence[str],
    default: Mapping[str, Mapping[str, Any]] | None = None,
) -> list[Stretch]:
    """Tell for every stage, in the order of the recipe, how it was trained, how far it went and why it ended.

    Args:
        stages: of the recipe, in order.
        rows: of the history, oldest first, whose `step` and `images` count from the start of the run.
        stage_ends: "<name>: <why>" of the finished stages, in order.
        default: by stage, settings where the history has none.
    """
    names = [stage.name for stage in stages]
    found, results, is_known = _stretches(rows), list[Stretch](), True
    for position, stage in enumerate(stages):
        default_settings = (default or {}).get(stage.name, {})
        # Stages of one name cannot be told apart.
        parts = found.get(stage.name, []) if names.count(stage.name) == 1 else []
        stretches = []
        for part in parts:
            # After a stage without a trace, one whose own line does not say where it began may have begun anywhere.
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
    """A stretch: steps and images before and after it, and its settings; `before` is None where it is not known."""

    before: tuple[int, int] | None
    after: tuple[int, int]
    settings: Mapping[str, Any]


def _stretches(rows: Sequence[Mapping[str, Any]]) -> dict[str, list[_Part]]:
    """The stretches of each stage, without those in which nothing was trained."""
    found: dict[str, list[_Part]] = {}
    stage: str | None = None
    settings: Mapping[str, Any] = {}
    before: tuple[int, int] | None = (0, 0)
    last = (0, 0)

    def close() -> None:
        if stage is not None and last != before:
            found.setdefault(stage, []).append(_Part(before, last, settings))

    for row in rows:
        told, here = row.get(SETTINGS), (row["step"], row.get("images", last[1]))
        told = told if isinstance(told, Mapping) else None
        if told is not None and stage is not None:
            last = here  # what was before has gone up to here
        if row["stage"] != stage or (told is not None and told != settings):
            close()
            # A file that was lost and begun anew tells where it begins, but not where the stage did.
            before = None if told is not None and stage is None and here != (0, 0) else last
            stage, settings = row["stage"], told or {}
        last = here
    close()
    return found


def final_losses(rows: Sequence[Mapping[str, Any]], num_levels: int) -> list[LevelLoss]:
    """The last finite losses of each level, innermost first."""
    newest: dict[str, float] = {}
    for row in rows:
        newest.update((name, value) for name, value in row.items() if value is not None)
    return [
        LevelLoss(newest.get(f"loss/level_{level}"), newest.get(f"validation_loss/level_{level}"))
        for level in range(num_levels)
    ]
