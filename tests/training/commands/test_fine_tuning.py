# SPDX-License-Identifier: Apache-2.0
"""The recipe that continues a saved pipeline."""

import json

import pytest

from diffusers_mdm import MDMPipeline
from diffusers_mdm.training.commands.fine_tuning import (
    count_images,
    recipe_for_pipeline,
    steps_for_passes,
)
from diffusers_mdm.training.commands.flags import read_command
from diffusers_mdm.training.loop.start import build_unet
from diffusers_mdm.training.recipe.data import DataRecipe
from diffusers_mdm.training.recipe.recipe import PretrainedRecipe, Recipe
from tests.pipelines.tiny_pipeline import make_pipeline


def recipe_of(pipeline_dir, **arguments) -> Recipe:
    return recipe_for_pipeline(PretrainedRecipe(str(pipeline_dir)), DataRecipe(path="images"), 5, **arguments)


def without_origin(config) -> dict:
    plain = json.loads(json.dumps(dict(config)))
    return {key: value for key, value in plain.items() if not key.startswith("_")}


def test_it_describes_the_pipeline_as_it_is(pipeline_dir):
    recipe = recipe_of(pipeline_dir)
    saved = MDMPipeline.from_pretrained(pipeline_dir)
    rebuilt = build_unet(recipe, 2)
    assert without_origin(rebuilt.config) == without_origin(saved.unet.config)
    assert {key: value.shape for key, value in rebuilt.state_dict().items()} == {
        key: value.shape for key, value in saved.unet.state_dict().items()
    }
    scheduler = without_origin(saved.scheduler.config)
    assert {key: scheduler[key] for key in recipe.scheduler} == without_origin(recipe.scheduler)
    assert recipe.text_encoder.from_pipeline
    assert [(stage.levels, stage.steps) for stage in recipe.stages] == [(2, 5)]
    assert not recipe.use_ema


@pytest.mark.parametrize("arguments", [{"train_levels": 1}, {"resolution": 8}])
def test_the_inner_levels_alone(pipeline_dir, arguments):
    recipe = recipe_of(pipeline_dir, **arguments)
    assert (len(recipe.levels), recipe.stages[0].levels) == (1, 1)
    assert recipe.levels == recipe_of(pipeline_dir).levels[:1]


def test_the_inner_levels_of_a_model_that_predicts_one_thing_each(tmp_path):
    pipeline = make_pipeline()
    predictions = {"prediction_type": ["v_prediction", "residual"], "sigma_data": [0.3]}
    pipeline.scheduler = type(pipeline.scheduler).from_config(pipeline.scheduler.config, **predictions)
    pipeline.save_pretrained(tmp_path / "model")
    assert recipe_of(tmp_path / "model").scheduler["prediction_type"] == ["v_prediction", "residual"]
    inner = recipe_of(tmp_path / "model", train_levels=1)
    assert inner.scheduler["prediction_type"] == ["v_prediction"]
    assert "sigma_data" not in inner.scheduler


def test_levels_that_are_not_there_are_refused(pipeline_dir):
    with pytest.raises(ValueError, match="--train_levels is 3, but the model has 2"):
        recipe_of(pipeline_dir, train_levels=3)
    with pytest.raises(ValueError, match="8, 16 pixels"):
        recipe_of(pipeline_dir, resolution=12)
    with pytest.raises(ValueError, match="drop one"):
        recipe_of(pipeline_dir, resolution=16, train_levels=1)


def test_folders_without_a_pipeline_are_refused(pipeline_dir, tmp_path):
    with pytest.raises(ValueError, match="not a saved pipeline"):
        recipe_of(tmp_path)
    index = json.loads((pipeline_dir / "model_index.json").read_text())
    index["scheduler"] = ["diffusers", "DDPMScheduler"]
    (tmp_path / "model_index.json").write_text(json.dumps(index))
    for part in ("unet", "scheduler"):
        (tmp_path / part).symlink_to(pipeline_dir / part)
    with pytest.raises(ValueError, match="DDPMScheduler as its scheduler; training needs a MatryoshkaScheduler"):
        recipe_of(tmp_path)


def test_a_pipeline_of_classes_has_neither_text_encoder_nor_captions(tmp_path):
    pipeline = make_pipeline(cross_attention_dim=None, encoder_hid_dim=None, num_class_embeds=4)
    pipeline.unet.save_pretrained(tmp_path / "unet")
    pipeline.scheduler.save_pretrained(tmp_path / "scheduler")
    index = {"unet": ["diffusers_mdm", "NestedUNetModel"], "scheduler": ["diffusers_mdm", "MatryoshkaScheduler"]}
    (tmp_path / "model_index.json").write_text(json.dumps({"_class_name": "MDMPipeline", **index}))
    data = DataRecipe(path="images", label_column="kind")
    recipe = recipe_for_pipeline(PretrainedRecipe(str(tmp_path)), data, 5)
    assert recipe.text_encoder is None
    assert recipe.data.caption == ""


def test_flags_make_this_recipe_with_the_hosts_defaults(pipeline_dir, images_dir):
    start = ["--pretrained_model_name_or_path", str(pipeline_dir), "--output_dir", "out"]
    recipe, options, is_dry_run = read_command([*start, "--train_data_dir", str(images_dir)])
    (stage,) = recipe.stages
    assert (stage.batch_size, stage.learning_rate, stage.lr_scheduler) == (16, 1e-5, "constant")
    assert (stage.steps, stage.images) == (None, 100 * 12)  # a hundred passes over twelve images
    assert (options.max_train_steps, is_dry_run, recipe.data.center_crop) == (None, False, False)
    recipe, options, _ = read_command(
        [*start, "--train_data_dir", str(images_dir), "--rank", "2", "--max_train_steps", "7", "--train_levels", "1"]
    )
    assert (recipe.lora.rank, recipe.stages[0].learning_rate) == (2, 1e-4)
    assert (recipe.stages[0].steps, recipe.stages[0].levels, options.max_train_steps) == (7, 1, 7)
    subject = ["--instance_data_dir", str(images_dir), "--instance_prompt", "a sks shape"]
    (stage,) = read_command([*start, *subject])[0].stages
    assert (stage.batch_size, stage.learning_rate, stage.images, stage.caption_dropout) == (4, 5e-6, 12, 0.0)


def test_passes_over_the_images_become_steps(images_dir):
    assert count_images(DataRecipe(path=str(images_dir)), "--x") == 12
    assert count_images(DataRecipe(path=str(images_dir), max_train_samples=5), "--x") == 5
    assert count_images(DataRecipe(path=str(images_dir), max_train_samples=50), "--x") == 12
    with pytest.raises(ValueError, match="--x counts passes"):
        count_images(DataRecipe(shards=("a.tar",)), "--x")
    assert steps_for_passes(3, 12, 8) == 5  # 36 images, 8 a step
    assert steps_for_passes(1, 12, 4) == 3
