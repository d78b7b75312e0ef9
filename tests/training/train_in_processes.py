# SPDX-License-Identifier: Apache-2.0
r"""Train the tiny recipe as one of several processes and write what this one ended with: see test_processes.py.

python train_in_processes.py PICTURES OUTPUT '{"batch_size": 4, ...}' '{"checkpointing_steps": 2, ...}' \
    '{"share_blocks": true}'
"""

import dataclasses
import json
import sys
from pathlib import Path

import torch
from tiny_run import tiny_recipe

from diffusers_mdm.training.engine import run_recipe
from diffusers_mdm.training.interruption import RunInterrupted
from diffusers_mdm.training.recipe import OptimizerRecipe, Recipe
from diffusers_mdm.training.run import RunOptions


def smooth_recipe(pictures_dir: Path, **stage_fields: object) -> Recipe:
    """The tiny recipe without what would magnify rounding: pads that count, and Adam's division by tiny numbers."""
    recipe = tiny_recipe(pictures_dir, **stage_fields)
    model = {**recipe.model, "use_cross_attention_mask": True}
    return dataclasses.replace(recipe, model=model, optimizer=OptimizerRecipe(adam_epsilon=1e-2), zero_init=False)


def main(pictures_dir: Path, output_dir: Path, stage_fields: dict, option_fields: dict, outer_fields: dict) -> None:
    torch.set_num_threads(1)
    recipe = smooth_recipe(pictures_dir, **stage_fields)
    inner, outer = recipe.levels
    recipe = dataclasses.replace(recipe, levels=(inner, {**outer, **outer_fields}))
    try:
        run_recipe(recipe, RunOptions(output_dir=output_dir, report_to=None, **option_fields))
    except RunInterrupted as stopped:
        print(stopped)


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]), *map(json.loads, sys.argv[3:6]))
