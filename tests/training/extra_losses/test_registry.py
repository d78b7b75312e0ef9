# SPDX-License-Identifier: Apache-2.0
"""Recipes with extra losses: from start to end, and exactly on after a stop."""

import dataclasses
import shutil

import pytest
import torch
from safetensors.torch import load_file

from diffusers_mdm.training.extra_losses.registry import open_extra_losses
from diffusers_mdm.training.loop.engine import run_recipe
from diffusers_mdm.training.loop.start import start_run
from diffusers_mdm.training.recipe.recipe import ValidationRecipe
from diffusers_mdm.training.recipe.stage import AlignmentRecipe, PerceptualRecipe
from diffusers_mdm.training.state.history import FILE_NAME, History
from diffusers_mdm.training.state.run import Run
from tests.training.extra_losses.tiny_networks import register
from tests.training.loop.run_folders import assert_equal, everything, only_result, options, weights
from tests.training.tiny_run import tiny_recipe, write_images

ALIGNMENT = AlignmentRecipe("tiny", weight=0.5, hidden_channels=8)
FILE = "extra_losses.safetensors"


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    return write_images(tmp_path_factory.mktemp("pictures"))


@pytest.fixture
def recipe(images, monkeypatch):
    """Two stages of four steps: the model aligned in both, the outer level compared by the perceptual loss."""
    register(monkeypatch)
    recipe = tiny_recipe(images, steps=4)
    perceptual = PerceptualRecipe("tiny", stages=(recipe.stages[1].name,))
    return dataclasses.replace(
        recipe, alignment=ALIGNMENT, perceptual=perceptual, validation=ValidationRecipe(), use_ema=False
    )


def test_stopping_and_resuming_changes_nothing(tmp_path, recipe):
    """Stopped in the middle of the first stage; the projection is part of checkpoints, and of nothing else."""
    run_recipe(recipe, options(tmp_path / "whole"))
    shutil.copytree(tmp_path / "whole" / "checkpoint-2", tmp_path / "parts" / "checkpoint-2")
    run_recipe(recipe, only_result(tmp_path / "parts"))
    whole, parts = (tmp_path / name / "checkpoint-8" for name in ("whole", "parts"))
    assert_equal(everything(whole), everything(parts))
    assert_equal(load_file(whole / FILE), load_file(parts / FILE))
    assert all(name.startswith("alignment.") for name in load_file(whole / FILE))
    assert any(name.startswith("extra_losses.alignment.") for name in load_file(whole / "optimizer.safetensors"))
    assert not list((tmp_path / "whole").glob(FILE))
    history = History(tmp_path / "whole" / FILE_NAME).read()
    reported = [sorted(name for name in line if name in ("loss/alignment", "loss/perceptual")) for line in history]
    assert ["loss/alignment"] in reported
    assert ["loss/alignment", "loss/perceptual"] in reported
    go_on_without(recipe, tmp_path)


def go_on_without(recipe, tmp_path):
    """An extra loss may end in the middle of a stage, but may not become another one; it changes what is learnt."""
    shutil.copytree(tmp_path / "whole" / "checkpoint-2", tmp_path / "without" / "checkpoint-2")
    inner = dataclasses.replace(recipe, stages=recipe.stages[:1], levels=recipe.levels[:1], perceptual=None)
    other = dataclasses.replace(inner, alignment=dataclasses.replace(ALIGNMENT, hidden_channels=4))
    with pytest.raises(ValueError, match=r"alignment\.hidden_channels"):
        run_recipe(other, options(tmp_path / "without"))
    run_recipe(dataclasses.replace(inner, alignment=None), only_result(tmp_path / "without"))
    whole, without = (tmp_path / name / "checkpoint-4" for name in ("whole", "without"))
    assert not (without / FILE).exists()
    name = "unet.levels.0.encoder.conv_in.weight"
    assert not torch.equal(weights(whole)[name], weights(without)[name])


def test_layers_depend_on_the_seed_alone(recipe):
    torch.manual_seed(5)
    state = torch.get_rng_state()
    one, same, other = (open_extra_losses(recipe, "cpu", seed)["alignment"].trained[0].weight for seed in (1, 1, 2))
    assert torch.equal(one, same)
    assert not torch.equal(one, other)
    assert torch.equal(torch.get_rng_state(), state)
    with pytest.raises(ValueError, match="`alignment`: 'no such network'"):
        open_extra_losses(dataclasses.replace(recipe, alignment=AlignmentRecipe("no such network")), "cpu", 0)


def test_layers_of_losses_are_not_sharded(tmp_path, recipe, monkeypatch):
    monkeypatch.setattr(Run, "is_sharded", True)
    with pytest.raises(ValueError, match=r"`alignment` trains layers of its own.*without FSDP"):
        start_run(recipe, options(tmp_path))
