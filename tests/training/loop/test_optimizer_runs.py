# SPDX-License-Identifier: Apache-2.0
"""Runs with other optimizers than AdamW: through growth, LoRA and interruption they end as uninterrupted ones."""

import dataclasses
import json
import shutil

import pytest
from safetensors.torch import load_file

from diffusers_mdm.training.loop.engine import run_recipe
from diffusers_mdm.training.recipe.optimizer import OptimizerRecipe
from diffusers_mdm.training.recipe.recipe import LoraRecipe, PretrainedRecipe, ValidationRecipe
from diffusers_mdm.training.recipe.text_encoder import TextEncoderRecipe
from tests.training.loop.run_folders import assert_equal, everything, only_result, options
from tests.training.optimizers.test_registry import INSTALLED, RECIPES
from tests.training.tiny_run import tiny_recipe

OTHERS = [parameter for parameter in INSTALLED if parameter.values != ("adamw",)]


def slow_but(name: str) -> list:
    """All of them, of which one is tested by default."""
    slow = pytest.mark.slow
    return [
        parameter if parameter.values == (name,) else pytest.param(*parameter.values, marks=[*parameter.marks, slow])
        for parameter in OTHERS
    ]


def recipe_with(name: str, images_dir, **stage_fields):
    """The tiny recipe with another optimizer, without samples."""
    rate = 1.0 if name == "prodigy" else 1e-3
    recipe = tiny_recipe(images_dir, learning_rate=rate, **stage_fields)
    encoder = dataclasses.replace(recipe.text_encoder, token_learning_rate_scale=1.0)
    return dataclasses.replace(recipe, optimizer=RECIPES[name], validation=ValidationRecipe(), text_encoder=encoder)


@pytest.mark.parametrize("name", slow_but("prodigy"))
def test_a_resumed_run_ends_as_an_uninterrupted_one(name, images_dir, tmp_path):
    """From within the first stage, so that a level is added to what was resumed."""
    recipe = recipe_with(name, images_dir, steps=2)
    whole = run_recipe(recipe, options(tmp_path / "whole", checkpointing_steps=1))
    resumed = tmp_path / "resumed"
    shutil.copytree(whole / "checkpoint-1", resumed / "checkpoint-1")
    run_recipe(recipe, only_result(resumed))
    assert_equal(everything(whole / "checkpoint-4"), everything(resumed / "checkpoint-4"))
    assert any(key.startswith("unet.levels.1.") for key in load_file(whole / "checkpoint-4" / "optimizer.safetensors"))
    with pytest.raises(ValueError, match=r"`optimizer\.(name|use_8bit_adam)`"):
        run_recipe(dataclasses.replace(recipe, optimizer=OptimizerRecipe()), options(resumed))


@pytest.mark.parametrize("name", slow_but("muon"))
def test_adapters_learn(name, finished, images_dir, tmp_path):
    recipe = dataclasses.replace(
        recipe_with(name, images_dir, levels=2, steps=1),
        pretrained=PretrainedRecipe(str(finished)),
        text_encoder=TextEncoderRecipe(from_pipeline=True),
        lora=LoraRecipe(rank=2),
    )
    run_recipe(dataclasses.replace(recipe, stages=recipe.stages[-1:]), only_result(tmp_path))
    adapter = load_file(tmp_path / "pytorch_lora_weights.safetensors")
    assert any(value.any() for key, value in adapter.items() if "lora_B" in key)
    written = json.loads((tmp_path / "recipe.json").read_text())["optimizer"]
    assert (written.get("name", "adamw"), written.get("use_8bit_adam", False)) == (
        RECIPES[name].name,
        RECIPES[name].use_8bit_adam,
    )
