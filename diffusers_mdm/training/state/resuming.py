# SPDX-License-Identifier: Apache-2.0
"""Finding the checkpoint to resume from, and comparing it with the recipe before anything is loaded or written."""

from dataclasses import dataclass
from pathlib import Path

from ..recipe.recipe import Recipe
from ..recipe.resuming import Resumption
from .checkpoint_folders import choose_checkpoint
from .checkpoint_report import CheckpointReport, compare, read_report, why_too_far


@dataclass(frozen=True)
class Start:
    """A checkpoint from which a run resumes.

    Attributes:
        checkpoint: its folder.
        report: its report.
        resumption: the recipe to continue with, and what has changed in it.
    """

    checkpoint: Path
    report: CheckpointReport
    resumption: Resumption


def find_start(recipe: Recipe, output_dir: Path, wanted: str, seed: int) -> Start | None:
    """Return the checkpoint from which a run resumes; None if it starts from the beginning.

    "latest" means the latest from which everything in the recipe can be trained. If a finished stage is to be made
    longer, that is a checkpoint from within this stage; if there is none, it is the latest, and the stage stays short.

    Args:
        recipe: the recipe to resume with.
        output_dir: output folder of the run.
        wanted: "latest", "none", or the name or folder of a checkpoint.
        seed: seed given to the command.

    Raises:
        ValueError: there is no such checkpoint, it cannot be read, or it does not allow this recipe.
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
