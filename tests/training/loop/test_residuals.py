# SPDX-License-Identifier: Apache-2.0
"""Levels with different prediction types: `sigma_data` is measured once, and a last layer starts from zero if the type
of its level changes.
"""

import dataclasses
import itertools
import shutil

import pytest
import torch

from diffusers_mdm import MDMPipeline, build_pyramid
from diffusers_mdm.schedulers.block_averages import enlarge
from diffusers_mdm.schedulers.predictions import RESIDUALS
from diffusers_mdm.training.data.order import BatchOrder
from diffusers_mdm.training.data.sources import open_training_images
from diffusers_mdm.training.loop.engine import run_recipe
from diffusers_mdm.training.recipe.recipe import LoraRecipe, PretrainedRecipe, Recipe
from diffusers_mdm.training.recipe.text_encoder import TextEncoderRecipe
from tests.training.loop.run_folders import assert_equal, counters, everything, only_result, options
from tests.training.tiny_run import tiny_recipe


def recipe_of(images_dir, **scheduler) -> Recipe:
    recipe = tiny_recipe(images_dir)
    return dataclasses.replace(recipe, scheduler={**recipe.scheduler, **scheduler})


@pytest.fixture(scope="module")
def residual_run(images_dir, tmp_path_factory):
    """Two stages of four steps; the outer level predicts a residual."""
    folder = tmp_path_factory.mktemp("residual")
    run_recipe(
        recipe_of(images_dir, prediction_type=["sample", "residual"]), only_result(folder, checkpointing_steps=2)
    )
    return folder


def test_sigma_data_is_measured_on_training_images(residual_run, images_dir):
    (measured,) = MDMPipeline.from_pretrained(residual_run).scheduler.config.sigma_data
    images = open_training_images(tiny_recipe(images_dir).data, 16, {}, None)
    (batch,) = itertools.islice(images.batches(BatchOrder(12), 0, 0), 1)
    pixels = batch.pixels.float() / 127.5 - 1
    inner, outer = build_pyramid(pixels, [8, 16])
    deviation = (outer - enlarge(inner, outer)).square().mean().sqrt().item()
    assert measured == pytest.approx(deviation, rel=0.02)


def test_a_saved_pipeline_has_the_prediction_type_of_each_level(residual_run):
    pipeline = MDMPipeline.from_pretrained(residual_run)
    assert pipeline.scheduler.config.prediction_type == ["sample", "residual"]
    levels = pipeline("red line", num_inference_steps=2, output_pyramid=True, output_type="pt").pyramid
    assert [level.shape[-1] for level in levels] == [8, 16]


@pytest.mark.parametrize("step", [4, 6], ids=["before-the-outer-level", "within-its-stage"])
def test_resumed_runs_keep_sigma_data(residual_run, images_dir, tmp_path, step):
    shutil.copytree(residual_run / f"checkpoint-{step}", tmp_path / f"checkpoint-{step}")
    run_recipe(recipe_of(images_dir, prediction_type=["sample", "residual"]), only_result(tmp_path))
    assert_equal(everything(residual_run / "checkpoint-8"), everything(tmp_path / "checkpoint-8"))
    assert counters(residual_run / "checkpoint-8") == counters(tmp_path / "checkpoint-8")
    assert len(counters(tmp_path / "checkpoint-8")["sigma_data"]) == 1


@pytest.mark.parametrize("kind", RESIDUALS)
def test_sigma_data_of_the_recipe_is_not_measured(images_dir, tmp_path, kind):
    recipe = recipe_of(images_dir, prediction_type=kind, sigma_data=0.7)
    stages = tuple(dataclasses.replace(stage, steps=1) for stage in recipe.stages)
    run_recipe(dataclasses.replace(recipe, stages=stages), only_result(tmp_path))
    assert MDMPipeline.from_pretrained(tmp_path).scheduler.config.sigma_data == 0.7
    assert counters(tmp_path / "checkpoint-2")["sigma_data"] == []


def fine_tuning(images_dir, folder, **fields) -> Recipe:
    recipe = recipe_of(images_dir, prediction_type=["v_prediction", "residual"])
    outer = dataclasses.replace(recipe.stages[1], steps=1, learning_rate=1e-12)
    return dataclasses.replace(
        recipe,
        stages=(outer,),
        pretrained=PretrainedRecipe(path=str(folder)),
        text_encoder=TextEncoderRecipe(from_pipeline=True),
        use_ema=False,
        **fields,
    )


def test_a_level_with_another_prediction_type_gets_a_new_last_layer(finished, images_dir, tmp_path):
    run_recipe(fine_tuning(images_dir, finished), only_result(tmp_path))
    before, after = (MDMPipeline.from_pretrained(folder).unet for folder in (finished, tmp_path))
    assert after.levels[1].decoder.conv_out.weight.abs().max() < 1e-6
    kept = itertools.chain(before.levels[0].named_parameters(), before.levels[1].encoder.named_parameters())
    others = itertools.chain(after.levels[0].parameters(), after.levels[1].encoder.parameters())
    for (name, one), other in zip(kept, others, strict=True):
        torch.testing.assert_close(one, other, atol=1e-6, rtol=0, msg=name)


def test_lora_cannot_change_the_prediction_type_of_a_level(finished, images_dir, tmp_path):
    with pytest.raises(ValueError, match=r"makes level 1 predict 'residual'.*'v_prediction'.*LoRA cannot learn"):
        run_recipe(fine_tuning(images_dir, finished, lora=LoraRecipe(rank=2)), options(tmp_path))
    assert list(tmp_path.glob("checkpoint*")) == []
