# SPDX-License-Identifier: Apache-2.0
"""Extra losses in recipes."""

import dataclasses

import pytest

from diffusers_mdm.training.recipe.loading import load_recipe
from diffusers_mdm.training.recipe.stage import AlignmentRecipe, PerceptualRecipe
from tests.training.tiny_run import RECIPES


@pytest.fixture(scope="module")
def tiny():
    return load_recipe(RECIPES / "tiny.yaml")


def test_they_are_named_in_the_order_in_which_they_are_added(tiny):
    assert tiny.extra_losses == {}
    both = dataclasses.replace(tiny, perceptual=PerceptualRecipe(), alignment=AlignmentRecipe("inception"))
    assert list(both.extra_losses) == ["alignment", "perceptual"]


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"alignment": AlignmentRecipe("inception", stages=("last",))}, r"alignment\.stages.*'last'.*inner"),
        ({"perceptual": PerceptualRecipe(levels=(2,))}, r"perceptual\.levels.*0 to 1"),
    ],
)
def test_what_a_recipe_does_not_have_is_refused(tiny, fields, message):
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(tiny, **fields)


def test_a_frozen_level_cannot_be_aligned(tiny):
    stages = (tiny.stages[0], dataclasses.replace(tiny.stages[1], frozen_levels=1))
    with pytest.raises(ValueError, match="frozen_levels"):
        dataclasses.replace(tiny, stages=stages, alignment=AlignmentRecipe("inception"))
    first = AlignmentRecipe("inception", stages=(tiny.stages[0].name,))
    dataclasses.replace(tiny, stages=stages, alignment=first)


def test_video_models_and_models_without_a_middle_block_are_refused(tiny):
    video = load_recipe(RECIPES / "tiny_video.yaml")
    with pytest.raises(ValueError, match=r"perceptual.*video"):
        dataclasses.replace(video, perceptual=PerceptualRecipe())
    levels = ({**tiny.levels[0], "has_mid_block": False}, tiny.levels[1])
    with pytest.raises(ValueError, match="has_mid_block"):
        dataclasses.replace(tiny, levels=levels, alignment=AlignmentRecipe("inception"))


@pytest.mark.parametrize("field", ["weight", "hidden_channels", "image_side"])
def test_numbers_have_to_be_positive(field):
    with pytest.raises(ValueError, match=f"`{field}`"):
        AlignmentRecipe("inception", **{field: 0})
