# SPDX-License-Identifier: Apache-2.0
"""Train the tiny recipe as one of several processes and write what this one ended with: see test_two_processes.py."""

import json
import sys
from pathlib import Path

import torch
from tiny_run import tiny_recipe

from diffusers_mdm.training.data import CaptionedImages, load_captioned_split
from diffusers_mdm.training.engine import stage_side, start_run
from diffusers_mdm.training.run import RunOptions
from diffusers_mdm.training.stage import train_stage


def main(pictures_dir: Path, output_dir: Path) -> None:
    recipe = tiny_recipe(pictures_dir)
    rows = load_captioned_split(recipe.data, "train")
    run = start_run(recipe, RunOptions(output_dir=output_dir, report_to=None), rows["text"])
    for stage in recipe.stages:
        images = CaptionedImages(rows, recipe.data, stage_side(recipe, stage.levels))
        train_stage(run, stage, images, lambda run: None)
    rank = run.accelerator.process_index
    weights = [value.detach() for module in run.trained_modules.values() for value in module.parameters()]
    torch.save(weights, output_dir / f"rank-{rank}.pt")
    report = {"processes": run.accelerator.num_processes, "images": run.progress.total_images}
    (output_dir / f"rank-{rank}.json").write_text(json.dumps(report))


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
