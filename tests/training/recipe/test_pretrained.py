# SPDX-License-Identifier: Apache-2.0
"""Recipes of LoRA, prior preservation and autoencoders: values of the wrong size or in conflict are refused."""

import pytest

from diffusers_mdm.training.recipe.pretrained import LoraRecipe, PriorRecipe, VaeRecipe


@pytest.mark.parametrize(
    ("cls", "fields", "name"),
    [
        (LoraRecipe, {"rank": 0}, "rank"),
        (LoraRecipe, {"rank": 2**20}, "rank"),
        (LoraRecipe, {"alpha": 0.0}, "alpha"),
        (LoraRecipe, {"dropout": 1.0}, "dropout"),
        (LoraRecipe, {"target_modules": ()}, "target_modules"),
        (PriorRecipe, {"num_class_images": 0}, "num_class_images"),
        (PriorRecipe, {"sample_batch_size": 0}, "sample_batch_size"),
        (PriorRecipe, {"weight": -1.0}, "weight"),
        (PriorRecipe, {"weight": float("nan")}, "weight"),
    ],
)
def test_what_cannot_be_learnt_is_refused_by_name(cls, fields, name):
    needed = {"class_data_dir": "class", "class_prompt": "a dog"} if cls is PriorRecipe else {}
    cls(**needed)
    with pytest.raises(ValueError, match=f"`{name}`"):
        cls(**needed, **fields)


def test_a_weight_of_nothing_and_single_layers_are_allowed():
    assert PriorRecipe("class", "a dog", weight=0.0).weight == 0
    assert LoraRecipe(target_modules=("to_q",)).target_modules == ("to_q",)


def test_an_autoencoder_is_saved_somewhere_or_that_of_the_pipeline():
    assert VaeRecipe("somebody/vae", subfolder="vae", variant="fp16").pretrained == "somebody/vae"
    assert VaeRecipe(from_pipeline=True).pretrained is None


@pytest.mark.parametrize("fields", [{}, {"pretrained": "somebody/vae", "from_pipeline": True}])
def test_an_autoencoder_from_nowhere_or_from_two_places_is_refused(fields):
    with pytest.raises(ValueError, match=r"`pretrained`, .* `from_pipeline: true`"):
        VaeRecipe(**fields)


@pytest.mark.parametrize("field", ["subfolder", "revision", "variant"])
def test_where_a_pipeline_has_it_is_not_asked(field):
    with pytest.raises(ValueError, match=rf"`{field}`.*`from_pipeline`"):
        VaeRecipe(from_pipeline=True, **{field: "x"})
