# SPDX-License-Identifier: Apache-2.0
import dataclasses

import pytest

from diffusers_mdm.training.recipe.loading import load_recipe
from diffusers_mdm.training.recipe.stage import PlateauRecipe
from tests.training.tiny_run import RECIPES, learning_stage


def test_the_first_end_to_come_counts():
    stage = load_recipe(RECIPES / "tiny.yaml").stages[1]
    assert (stage.steps, stage.max_steps()) == (4, 4)
    by_images = dataclasses.replace(stage, images=20)  # 8 images a step and process
    assert by_images.max_steps() == 3
    assert by_images.max_steps(num_processes=2) == 2
    with pytest.raises(ValueError, match="known last step"):
        dataclasses.replace(stage, steps=None, until_plateau=PlateauRecipe(every_steps=2))
    open_ended = dataclasses.replace(
        stage, steps=None, until_plateau=PlateauRecipe(every_steps=2), lr_scheduler="constant_with_warmup"
    )
    assert open_ended.max_steps() is None


def test_stage_counts_images_and_rows():
    outer = load_recipe(RECIPES / "tiny.yaml").stages[1]
    assert outer.images_per_step == 8
    assert outer.samples_per_level == (4, 2)
    assert dataclasses.replace(outer, batch_fractions=None).samples_per_level == (4, 4)


WRONG = {
    "batch_size": (0, "at least 1"),
    "steps": (0, "at least 1"),
    "learning_rate": (-1e-3, "at least 0"),
    "lr_warmup_steps": (-1, "at least 0"),
    "ema_decay": (1.0, "below 1"),
    "batch_fractions": ((0.0,), "above 0"),
    "seed": (-1, "at least 0"),
}


@pytest.mark.parametrize("field", WRONG)
def test_numbers_that_cannot_be_are_refused_by_name(field):
    value, words = WRONG[field]
    with pytest.raises(ValueError, match=rf"`{field}` must be .*{words}.*, got"):
        learning_stage(**{field: value})


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"snr_gamma": 5.0, "p2_gamma": 1.0}, "set only one"),
        ({"loss_weighting": "sigmoid", "snr_gamma": 5.0}, "snr_gamma.*omit"),
        ({"loss_weighting": "sigmoid", "p2_gamma": 1.0}, "p2_gamma.*omit"),
        ({"sigmoid_bias": -2.0}, "sigmoid_bias.*'epsilon'"),
        ({"snr_gamma": (5.0, 1.0)}, "snr_gamma.*one per level"),
        ({"p2_gamma": (0.0,)}, "p2_gamma.*above 0"),
    ],
)
def test_weightings_that_contradict_each_other_are_refused(fields, message):
    with pytest.raises(ValueError, match=message):
        learning_stage(**fields)
