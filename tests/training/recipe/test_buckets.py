# SPDX-License-Identifier: Apache-2.0
"""Aspect-ratio buckets of a recipe: which sizes suit its levels, and which settings they cannot be combined with."""

import dataclasses

import pytest

from diffusers_mdm.training.recipe.buckets import automatic_buckets, level_buckets, most_square
from diffusers_mdm.training.recipe.data import DataRecipe
from diffusers_mdm.training.recipe.loading import load_recipe
from diffusers_mdm.training.recipe.pretrained import PriorRecipe, VaeRecipe
from tests.training.tiny_run import RECIPES

# Levels of 8 and 16 pixels, whose sizes are multiples of 2 and 4.
TINY = load_recipe(RECIPES / "tiny.yaml")


def with_data(**fields):
    return dataclasses.replace(TINY, data=dataclasses.replace(TINY.data, **fields))


def test_every_level_has_the_sizes_in_proportion():
    recipe = with_data(aspect_ratio_buckets=((12, 20), (16, 16), (16, 12)))
    assert level_buckets(recipe, 2) == ((12, 20), (16, 16), (16, 12))
    assert level_buckets(recipe, 1) == ((6, 10), (8, 8), (8, 6))
    assert level_buckets(TINY, 2) == ()


@pytest.mark.parametrize(("side", "multiple"), [(16, 4), (64, 16), (64, 8), (256, 32), (1024, 64)])
def test_sizes_that_are_chosen_have_about_the_area_of_the_square(side, multiple):
    sizes = automatic_buckets(side, multiple)
    assert (side, side) in sizes
    assert set(sizes) == {(width, height) for height, width in sizes}
    for height, width in sizes:
        assert height % multiple == width % multiple == 0
        assert max(height, width) <= 2 * min(height, width)
        assert min(height, width) <= side <= max(height, width)
        assert abs(height * width / side**2 - 1) < 0.3
    assert most_square(sizes) == (side, side)


def test_they_are_used_if_they_are_named_or_requested():
    assert with_data(use_aspect_ratio_buckets=True).data.has_buckets
    assert (16, 16) in level_buckets(with_data(use_aspect_ratio_buckets=True), 2)
    assert not with_data(use_aspect_ratio_buckets=False).data.has_buckets
    assert not TINY.data.has_buckets


WRONG = [
    (((12, 18),), "has 12 x 18 .* must be multiples of 4"),
    (((12, 12),), "has 12 x 12 .* the outermost level has 16 pixels"),
    (((20, 20),), "has 20 x 20 .* the outermost level has 16 pixels"),
    (((4, 32),), "has 4 x 32 .*which at the level of 8 pixels is 2 x 16, the size of another level"),
    (((12, 20), (12, 20)), "expected different sizes"),
    ((), "expected different sizes"),
    (((12,),), "expected different sizes"),
    (((0, 16),), "expected different sizes"),
]


@pytest.mark.parametrize(("sizes", "message"), WRONG)
def test_sizes_that_do_not_suit_the_levels_are_refused(sizes, message):
    with pytest.raises(ValueError, match=message):
        with_data(aspect_ratio_buckets=sizes)


def test_a_square_alone_is_refused():
    with pytest.raises(ValueError, match="finds no size other than 16 x 16"):
        automatic_buckets(16, 16)


def test_settings_that_they_cannot_be_combined_with():
    buckets = {"aspect_ratio_buckets": ((12, 20),)}
    with pytest.raises(ValueError, match="has no effect with `use_aspect_ratio_buckets: false`"):
        with_data(use_aspect_ratio_buckets=False, **buckets)
    with pytest.raises(ValueError, match=r"use `data\.path` instead of `data\.shards`"):
        dataclasses.replace(TINY, data=DataRecipe(shards=("a.tar",), **buckets))
    with pytest.raises(ValueError, match="cannot be combined with `prior_preservation`"):
        dataclasses.replace(with_data(**buckets), prior_preservation=PriorRecipe("dogs", "a dog"))
    video = load_recipe(RECIPES / "tiny_video.yaml")
    with pytest.raises(ValueError, match="clips are cropped to squares"):
        dataclasses.replace(video, data=dataclasses.replace(video.data, **buckets))
    assert video.images is not None
    with pytest.raises(ValueError, match=r"images\.use_aspect_ratio_buckets"):
        dataclasses.replace(video, images=dataclasses.replace(video.images, **buckets))


def test_sizes_of_latents_are_checked_with_the_autoencoder():
    data = dataclasses.replace(TINY.data, aspect_ratio_buckets=((24, 40), (40, 24)))
    latents = dataclasses.replace(TINY, vae=VaeRecipe(pretrained="vae"), data=data)
    assert level_buckets(latents, 1, factor=2) == ((12, 20), (20, 12))
    with pytest.raises(ValueError, match="must be multiples of 16"):
        level_buckets(latents, 1, factor=4)
