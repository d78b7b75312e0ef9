# SPDX-License-Identifier: Apache-2.0
"""What came of the stages of a run, read from its history: steps, images, reasons and last losses."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from ..recipe.stage import StageRecipe


class StageResult(NamedTuple):
    """What one stage did; None where the history does not tell, as after the file was lost."""

    stage: StageRecipe
    steps: int | None
    images: int | None  # over all processes
    why_ended: str | None


class LevelLoss(NamedTuple):
    """The last losses of one level; None where they were not measured."""

    training: float | None
    validation: float | None


def stage_results(
    stages: Sequence[StageRecipe], rows: Sequence[Mapping[str, Any]], stage_ends: Sequence[str]
) -> list[StageResult]:
    """Tell for every stage how far it went and why it ended.

    Args:
        stages: of the recipe, in order.
        rows: of the history, oldest first, whose `step` and `images` count from the start of the run.
        stage_ends: "<name>: <why>" of the finished stages, in order.
    """
    last = {row["stage"]: (row["step"], row["images"]) for row in rows}
    names = [stage.name for stage in stages]
    results, before = [], (0, 0)
    for position, stage in enumerate(stages):
        # Stages of one name cannot be told apart.
        after = last.get(stage.name) if names.count(stage.name) == 1 else None
        known = after is not None and before is not None
        steps, images = (after[0] - before[0], after[1] - before[1]) if known else (None, None)  # type: ignore[index]
        end = stage_ends[position] if position < len(stage_ends) else None
        results.append(StageResult(stage, steps, images, end and end.removeprefix(f"{stage.name}: ")))
        before = after  # type: ignore[assignment]
    return results


def final_losses(rows: Sequence[Mapping[str, Any]], num_levels: int) -> list[LevelLoss]:
    """The last finite losses of each level, innermost first."""
    newest: dict[str, float] = {}
    for row in rows:
        newest.update((name, value) for name, value in row.items() if value is not None)
    return [
        LevelLoss(newest.get(f"loss/level_{level}"), newest.get(f"validation_loss/level_{level}"))
        for level in range(num_levels)
    ]
