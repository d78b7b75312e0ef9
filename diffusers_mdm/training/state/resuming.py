# SPDX-License-Identifier: Apache-2.0
"""Where a run goes on from, found and compared with its recipe before anything is loaded or written."""

from dataclasses import dataclass
from pathlib import Path

from ..recipe.recipe import Recipe
from ..recipe.resuming import Resumption
from .checkpoint_folders import choose_checkpoint
from .checkpoint_report import CheckpointReport, compare, read_report, why_too_far


@dataclass(frozen=True)
class Start:
    """A checkpoint that a run goes on from.

    Attributes:
        checkpoint: its folder.
        report: what it says of itself.
        resumption: the recipe to go on with, and what has changed in it.
    """

    checkpoint: Path
    report: CheckpointReport
    resumption: Resumption


def find_start(recipe: Recipe, output_dir: Path, wanted: str, seed: int) -> Start | None:
    """The checkpoint that a run goes on from; None if it starts at the beginning.

    "latest" takes the newest from which everything can be trained that the recipe asks for. Where a stage that is over
    is to be longer, that is one from within the stage; if none is left, it is the newest, and the stage stays short.

    Args:
        recipe: that the run is to be resumed with.
        output_dir: of the run.
        wanted: "latest", "none", a checkpoint's name, or a folder.
        seed: of the command.

    Raises:
        ValueError: there is no such checkpoint, it cannot be read, or the run cannot go on from it with this recipe.
    """

    def why_rather_older(checkpoint: Path) -> str | None:
        report = read_report(checkpoint)
        compare(report, checkpoint, recipe, seed)
        return why_too_far(report, recipe)

    checkpoint = choose_checkpoint(output_dir, wanted, why_rather_older)
    if checkpoint is None:
        return None
    report = read_report(checkpoint)
    return Start(checkpoint, report, compare(report, checkpoint, recipe, seed))
