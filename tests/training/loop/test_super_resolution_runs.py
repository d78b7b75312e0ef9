# SPDX-License-Identifier: Apache-2.0
"""Whole runs that train a model to enlarge images, and what their recipes may not contain."""

import dataclasses

import pytest
import torch

from diffusers_mdm import MDMSuperResolutionPipeline
from diffusers_mdm.training.loop.engine import run_recipe
from diffusers_mdm.training.modules.small_images import noisy_small_images, shapes_of_draws, small_images
from diffusers_mdm.training.recipe.super_resolution import SuperResolutionRecipe
from diffusers_mdm.training.reports.validation_grid import validation_settings
from diffusers_mdm.training.state.run import RunOptions
from tests.training.labelled_images import class_recipe, write_labelled
from tests.training.tiny_run import tiny_recipe

LEVEL = {
    "block_out_channels": [8, 16],
    "layers_per_block": [1, 1],
    "attention_layers_per_block": [0, 1],
    "has_mid_block": True,
    "norm_num_groups": 4,
    "micro_conditioning_keys": ["noise_level"],
    "micro_conditioning_defaults": [0.0],
}


def enlarging(recipe, **fields):
    """The recipe with one level of 16 pixels, which enlarges 8 pixels."""
    stage = dataclasses.replace(recipe.stages[0], steps=2, lr_warmup_steps=0)
    return dataclasses.replace(
        recipe,
        **{
            "model": {**recipe.model, "sample_size": 16, "in_channels": 6},
            "levels": (LEVEL,),
            "stages": (stage,),
            "super_resolution": SuperResolutionRecipe(8, 0.4),
            "validation": dataclasses.replace(recipe.validation, prompts=(), num_loss_images=4),
            **fields,
        },
    )


def without_conditions(recipe):
    return dataclasses.replace(
        recipe,
        model={**recipe.model, "cross_attention_dim": None, "encoder_hid_dim": None},
        text_encoder=None,
        validation=dataclasses.replace(recipe.validation, prompts=()),
    )


def test_a_model_without_conditions_generates_no_validation_samples(tmp_path):
    """They would be enlarged from nothing."""
    recipe = without_conditions(tiny_recipe(tmp_path))
    assert validation_settings(recipe).drawn_prompts == ("",)
    assert validation_settings(enlarging(recipe)).drawn_prompts == ()


@pytest.mark.parametrize("condition", ["prompt", "class_labels", pytest.param("none", marks=pytest.mark.slow)])
def test_a_run_trains_measures_and_saves_a_pipeline(images_dir, tmp_path, condition):
    of_classes = condition == "class_labels"
    folder = write_labelled(images_dir, tmp_path / "named") if of_classes else images_dir
    recipe = enlarging(class_recipe(folder) if of_classes else tiny_recipe(folder))
    recipe = without_conditions(recipe) if condition == "none" else recipe
    recipe = dataclasses.replace(recipe, data=dataclasses.replace(recipe.data, validation_split="train"))
    run_recipe(recipe, RunOptions(output_dir=tmp_path / "run", report_to=None))
    history = (tmp_path / "run" / "history.jsonl").read_text()
    assert "validation_loss/level_0" in history
    pipeline = MDMSuperResolutionPipeline.from_pretrained(tmp_path / "run")
    assert (pipeline.config.low_resolution, pipeline.config.max_noise_level) == (8, 0.4)
    inputs = {"prompt": {"prompt": "red line"}, "class_labels": {"class_labels": 0}}.get(condition, {})
    small = torch.rand(1, 3, 8, 8)
    images = pipeline(image=small, noise_level=0.2, num_inference_steps=2, output_type="pt", **inputs).images
    assert images.shape == (1, 3, 16, 16)
    card = (tmp_path / "run" / "README.md").read_text()
    assert "image=small" in card
    assert "MDMSuperResolutionPipeline" in card


def test_small_images_are_averages_with_evenly_distributed_noise():
    generator = torch.Generator().manual_seed(0)
    image = torch.rand(4096, 1, 4, 4, generator=generator)
    recipe = SuperResolutionRecipe(2, 0.5)
    draws = [torch.randn(shape, generator=generator) for shape in shapes_of_draws(image)]
    seen = noisy_small_images(image, draws, recipe)
    assert seen.noise_level.min() >= 0
    assert seen.noise_level.max() <= 0.5
    quarters = torch.histc(seen.noise_level, 4, 0.0, 0.5) / len(image)
    torch.testing.assert_close(quarters, torch.full((4,), 0.25), rtol=0, atol=0.03)
    clean = small_images(image, recipe)
    assert clean.shape == image.shape
    torch.testing.assert_close(clean.mean(), image.mean())
    assert not small_images(image[:, :, :2, :2] * 0, SuperResolutionRecipe(1)).any()


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"super_resolution": None}, "model.in_channels"),
        ({"super_resolution": SuperResolutionRecipe(5)}, "super_resolution.low_resolution"),
        ({"super_resolution": SuperResolutionRecipe(16)}, "super_resolution.low_resolution"),
        ({"levels": ({**LEVEL, "micro_conditioning_keys": [], "micro_conditioning_defaults": []},)}, "noise_level"),
    ],
)
def test_recipes_that_do_not_fit(images_dir, changes, field):
    with pytest.raises(ValueError, match=field.replace(".", r"\.")):
        enlarging(tiny_recipe(images_dir), **changes)


def test_what_cannot_be_combined(images_dir):
    recipe = tiny_recipe(images_dir)
    with pytest.raises(ValueError, match=r"validation\.prompts"):
        enlarging(recipe, validation=recipe.validation)
    with pytest.raises(ValueError, match="twice"):
        enlarging(recipe, model={**recipe.model, "sample_size": 16})
    with pytest.raises(ValueError, match="one level"):
        dataclasses.replace(
            recipe, model={**recipe.model, "in_channels": 6}, super_resolution=SuperResolutionRecipe(8)
        )
    with pytest.raises(ValueError, match="max_noise_level"):
        SuperResolutionRecipe(8, 1.5)
