# SPDX-License-Identifier: Apache-2.0
"""What an earlier version saved is still read: its recipe, and its checkpoint, which a run goes on from."""

import dataclasses
import json
import shutil
from pathlib import Path

import pytest

from diffusers_mdm.training.loop.engine import run_recipe
from diffusers_mdm.training.recipe.loading import load_recipe
from diffusers_mdm.training.recipe.recipe import Recipe
from diffusers_mdm.training.state.run import RunOptions

SAVED = Path(__file__).parents[2] / "fixtures" / "saved_run"


def saved_recipe(images_dir: Path, steps: int) -> Recipe:
    recipe = load_recipe(SAVED / "recipe.json")
    stages = (dataclasses.replace(recipe.stages[0], steps=steps),)
    return dataclasses.replace(recipe, data=recipe.data.with_fields(path=str(images_dir)), stages=stages)


def options_with_checkpoint(folder: Path) -> RunOptions:
    shutil.copytree(SAVED / "checkpoint-2", folder / "checkpoint-2")
    return RunOptions(output_dir=folder, report_to=None, logging_steps=1)


def test_a_saved_run_goes_on(images_dir, tmp_path):
    run_recipe(saved_recipe(images_dir, steps=4), options_with_checkpoint(tmp_path))
    progress = json.loads((tmp_path / "checkpoint-4" / "progress.json").read_text(encoding="utf-8"))["progress"]
    assert (progress["total_steps"], progress["total_images"]) == (4, 8)
    assert load_recipe(tmp_path / "recipe.json").stages[0].steps == 4
    for folder in (tmp_path, tmp_path / "checkpoint-4"):
        tokenizer = json.loads((folder / "tokenizer" / "tokenizer.json").read_text(encoding="utf-8"))
        assert (tokenizer["truncation"], tokenizer["padding"]) == (None, None)


def test_another_model_cannot_go_on_from_it_and_nothing_is_written(images_dir, tmp_path):
    recipe = saved_recipe(images_dir, steps=4)
    other = dataclasses.replace(recipe, model={**recipe.model, "time_embed_dim": 16})
    with pytest.raises(ValueError, match=r"checkpoint-2 .*`model\.time_embed_dim` 8 -> 16"):
        run_recipe(other, options_with_checkpoint(tmp_path))
    assert not (tmp_path / "recipe.json").exists()
