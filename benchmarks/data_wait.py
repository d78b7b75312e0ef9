# SPDX-License-Identifier: Apache-2.0
"""Measure the share of time that training spends waiting for data, in each stage of a recipe.

The recipe is trained by the normal training loop, with every stage shortened to a number of steps; the shares are read
from the history that every run writes. The first report of a stage is shown separately, because the reading processes
start there.
"""

from __future__ import annotations

import argparse
import dataclasses
import tempfile
from pathlib import Path
from typing import Any

from measuring import EMOJI_RECIPE, describe_machine

from diffusers_mdm.training.loop.engine import run_recipe
from diffusers_mdm.training.recipe.loading import load_recipe
from diffusers_mdm.training.recipe.recipe import Recipe, ValidationRecipe
from diffusers_mdm.training.state.history import FILE_NAME, History
from diffusers_mdm.training.state.run import RunOptions

REPORTS = 5  # of each stage


@dataclasses.dataclass(frozen=True)
class DataWait:
    """Share of a stage's time spent waiting for data, in its first report and in the later ones."""

    stage: str
    images_per_second: float
    first: float
    later: float


def train_briefly(recipe: Recipe, output_dir: Path, steps: int, num_workers: int) -> list[dict[str, Any]]:
    """Train every stage for `steps` steps, without validation; return the reports from the run's history."""
    if steps < REPORTS:
        raise ValueError(f"{steps} steps cannot be reported in {REPORTS} parts; take at least {REPORTS} steps.")
    data = recipe.data.with_fields(validation_split=None, validation_shards=None)
    recipe = dataclasses.replace(recipe, data=data, validation=ValidationRecipe())
    options = RunOptions(
        output_dir,
        report_to=None,
        logging_steps=steps // REPORTS,
        checkpointing_steps=10**9,
        max_train_steps=steps // REPORTS * REPORTS,
        dataloader_num_workers=num_workers,
    )
    run_recipe(recipe, options)
    return [row for row in History(output_dir / FILE_NAME).read() if "data_wait_share" in row]


def shares_of_stages(rows: list[dict[str, Any]]) -> list[DataWait]:
    """Summarise the reports by stage; the later ones are weighted by the time they took."""
    waits = []
    images_before = 0
    for stage in dict.fromkeys(row["stage"] for row in rows):
        reports = [row for row in rows if row["stage"] == stage]
        counts = []
        for row in reports:
            counts.append(row["images"] - images_before)
            images_before = row["images"]
        seconds = [count / row["images_per_second"] for count, row in zip(counts, reports, strict=True)]
        waited = [time * row["data_wait_share"] for time, row in zip(seconds, reports, strict=True)]
        speed = sum(counts[1:]) / sum(seconds[1:])
        waits.append(DataWait(stage, speed, waited[0] / seconds[0], sum(waited[1:]) / sum(seconds[1:])))
    return waits


def main(argv: list[str] | None = None) -> None:
    """Train, and print one line per stage."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--recipe", type=Path, default=EMOJI_RECIPE)
    parser.add_argument("--steps", type=int, default=50, help="of each stage")
    parser.add_argument("--dataloader_num_workers", type=int, default=0)
    args = parser.parse_args(argv)
    print(f"{describe_machine('cpu')}, {args.dataloader_num_workers} reading processes")
    with tempfile.TemporaryDirectory() as folder:
        rows = train_briefly(load_recipe(args.recipe), Path(folder), args.steps, args.dataloader_num_workers)
    for wait in shares_of_stages(rows):
        print(
            f"{wait.stage}: {wait.later:.2%} of the time waiting for data ({wait.first:.2%} in the first "
            f"{1 / REPORTS:.0%} of its steps), {wait.images_per_second:.1f} images/s"
        )


if __name__ == "__main__":
    main()
