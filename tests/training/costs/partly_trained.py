# SPDX-License-Identifier: Apache-2.0
"""Recipes and models of which only a part is trained."""

import dataclasses

import torch

from diffusers_mdm.models.nested_unet import NestedUNetModel
from diffusers_mdm.training.loop.stage_setup import freeze_levels
from diffusers_mdm.training.recipe.pretrained import LoraRecipe, PretrainedRecipe
from diffusers_mdm.training.recipe.recipe import Recipe
from diffusers_mdm.training.recipe.text_encoder import TextEncoderRecipe


def lora_recipe(recipe: Recipe) -> Recipe:
    return dataclasses.replace(
        recipe,
        stages=recipe.stages[1:],
        lora=LoraRecipe(rank=2),
        pretrained=PretrainedRecipe("somewhere"),
        text_encoder=TextEncoderRecipe(from_pipeline=True),
    )


def freeze_inside_new_level(unet: NestedUNetModel) -> None:
    """Freeze level 0 inside a level whose adapter is zero, as that of a new level is."""
    for parameter in unet.levels[1].encoder.in_adapter.parameters():
        torch.nn.init.zeros_(parameter)
    freeze_levels(unet, 1)


def freeze_inside_trained_level(unet: NestedUNetModel) -> None:
    """Freeze level 0 inside a level that has learnt to give it features."""
    torch.nn.init.normal_(unet.levels[1].encoder.in_adapter.weight)
    freeze_levels(unet, 1)
