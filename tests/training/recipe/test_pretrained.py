# SPDX-License-Identifier: Apache-2.0
"""What may be learnt in place of a whole model: adapters of a sensible size, or one subject beside its class."""

import pytest

from diffusers_mdm.training.recipe.pretrained import LoraRecipe, PriorRecipe


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
