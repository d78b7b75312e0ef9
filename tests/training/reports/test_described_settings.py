# SPDX-License-Identifier: Apache-2.0
"""Settings in words: every setting that changes a run changes the text."""

import dataclasses

import pytest

from diffusers_mdm.training.recipe.loading import load_recipe
from diffusers_mdm.training.recipe.optimizer import OptimizerRecipe, PostHocEmaRecipe
from diffusers_mdm.training.recipe.stage import AlignmentRecipe, PerceptualRecipe, PlateauRecipe
from diffusers_mdm.training.reports import described_settings
from diffusers_mdm.training.reports.described_settings import (
    describe_extra_losses,
    describe_metrics,
    describe_optimizer,
    describe_plateau,
    describe_post_hoc,
    describe_prediction,
    describe_weighting,
    join_words,
    weighting_settings,
)
from tests.training.tiny_run import RECIPES, learning_stage

TINY = load_recipe(RECIPES / "tiny.yaml")


@pytest.mark.parametrize(
    ("fields", "text"),
    [
        ({}, "squared error of the noise"),
        ({"loss_weighting": "v", "snr_gamma": 5.0}, "squared error of v, weighted by min-SNR with gamma 5"),
        ({"p2_gamma": (0.5,)}, "squared error of the noise, weighted by P2 with gamma 0.5 and k 1"),
        (
            {"loss_weighting": "sigmoid"},
            "error of the noise, weighted by a sigmoid of the log SNR with bias 0",
        ),
        ({"loss_weighting": "sigmoid", "sigmoid_bias": (-2.0, -1.0), "levels": 2}, "with bias -2, -1"),
    ],
)
def test_weightings(fields, text):
    assert describe_weighting(weighting_settings(learning_stage(**fields))).endswith(text)


def test_a_history_of_an_earlier_version_has_the_weighting_alone():
    assert describe_weighting({"loss_weighting": "sample"}) == "squared error of the clean image"


def test_extra_losses_of_a_stage():
    alignment = AlignmentRecipe("/models/dinov2", weight=0.25, stages=("inner",))
    recipe = dataclasses.replace(TINY, alignment=alignment, perceptual=PerceptualRecipe())
    outermost = "perceptual loss of the outermost level by inception, weight 0.1"
    inner, outer = (describe_extra_losses(recipe, stage) for stage in recipe.stages)
    assert inner == ["alignment of level 0 with dinov2, weight 0.25", outermost]
    assert outer == [outermost]
    for levels, text in (((1,), "of level 1 by"), ((0, 1), "of levels 0 and 1 by")):
        (found,) = describe_extra_losses(
            dataclasses.replace(TINY, perceptual=PerceptualRecipe(levels=levels)), TINY.stages[1]
        )
        assert text in found


def test_predictions_and_noise_schedules():
    assert describe_prediction({}) == "the levels predict v"
    config = {"prediction_type": ["v_prediction", "residual"], "beta_schedule": "rectified_flow"}
    text = "level 0 predicts v and level 1 predicts what the enlarged inner image lacks; noise schedule rectified_flow"
    assert describe_prediction(config) == text


def test_optimizers(monkeypatch):
    assert describe_optimizer(OptimizerRecipe()) == "AdamW"
    assert describe_optimizer(OptimizerRecipe(adam_beta2=0.95, max_grad_norm=1.0)) == (
        "AdamW (adam_beta2 0.95, max_grad_norm 1.0)"
    )
    monkeypatch.setattr(described_settings, "is_installed", lambda settings: False)
    text = "8-bit AdamW, whose package bitsandbytes is not installed"
    assert describe_optimizer(OptimizerRecipe(use_8bit_adam=True)) == text


def test_averages_ends_and_metrics():
    assert describe_post_hoc(PostHocEmaRecipe(snapshot_steps=1000)) == (
        "power-function averages of widths 0.05 and 0.1, with a snapshot every 1,000 steps"
    )
    plateau = PlateauRecipe(every_steps=10, patience=3, metric="kid")
    assert describe_plateau(plateau) == "until 3 measurements of the metric kid, one every 10 steps, bring no gain"
    assert describe_metrics(TINY) is None
    validation = dataclasses.replace(TINY.validation, metrics=("fid",), num_metric_images=80)
    text = "fid of 80 generated and as many held-out images"
    assert describe_metrics(dataclasses.replace(TINY, validation=validation)) == text


def test_words_are_joined():
    assert [join_words(list(words)) for words in ("", "a", "ab", "abc")] == ["", "a", "a and b", "a, b and c"]
