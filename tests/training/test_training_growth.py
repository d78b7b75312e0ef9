# SPDX-License-Identifier: Apache-2.0
import pytest
import torch
from tiny_run import RECIPES

from diffusers_mdm.training.engine import build_unet
from diffusers_mdm.training.growth import grow_model
from diffusers_mdm.training.recipe import load_recipe


@pytest.fixture(scope="module")
def recipe():
    return load_recipe(RECIPES / "tiny.yaml")


def test_grown_model_begins_with_the_old_one(recipe):
    unet = build_unet(recipe, 1)
    grown = grow_model(unet, recipe.rows[1])
    old, new = list(unet.named_parameters()), list(grown.named_parameters())
    assert grown.num_levels == 2
    assert len(new) > len(old)
    for (old_name, old_value), (new_name, new_value) in zip(old, new, strict=False):
        assert old_name == new_name
        assert torch.equal(old_value, new_value)
