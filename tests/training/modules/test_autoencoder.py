# SPDX-License-Identifier: Apache-2.0
"""Which autoencoders are found, counted and refused."""

import dataclasses
import json

import pytest
import torch

from diffusers_mdm.training.commands.dry_run import describe_run
from diffusers_mdm.training.costs.memory_estimate import estimate_stage
from diffusers_mdm.training.loop.start import start_run
from diffusers_mdm.training.modules.autoencoder import count_vae_parameters, open_vae, scale_factor_of, vae_dtype
from diffusers_mdm.training.recipe.fields import FieldError, read_fields
from diffusers_mdm.training.recipe.pretrained import VaeRecipe
from diffusers_mdm.training.recipe.recipe import PretrainedRecipe, Recipe
from diffusers_mdm.training.recipe.text_encoder import TextEncoderRecipe
from diffusers_mdm.training.state.run import RunOptions
from tests.pipelines.tiny_tasks import make_vae
from tests.training.tiny_latents import latent_recipe, of_latents, save_latent_pipeline, save_vae
from tests.training.tiny_run import tiny_recipe


@pytest.fixture(scope="module")
def vae_dir(tmp_path_factory):
    return save_vae(tmp_path_factory.mktemp("saved") / "vae")


@pytest.fixture(scope="module")
def latent_pipeline_dir(tmp_path_factory):
    return save_latent_pipeline(tmp_path_factory.mktemp("saved") / "latent-pipeline")


@pytest.fixture
def recipe(images_dir, vae_dir) -> Recipe:
    return latent_recipe(images_dir, vae_dir)


def starting_from(recipe: Recipe, folder, **fields) -> Recipe:
    settings = {"text_encoder": TextEncoderRecipe(from_pipeline=True), "pretrained": PretrainedRecipe(str(folder))}
    return dataclasses.replace(recipe, **settings, **fields)


def number_of_weights() -> int:
    return sum(value.numel() for value in make_vae().parameters())


def test_it_comes_frozen_and_in_float32(recipe, tmp_path):
    vae = open_vae(recipe)
    assert not vae.training
    assert not any(value.requires_grad for value in vae.parameters())
    make_vae().half().save_pretrained(tmp_path)
    assert open_vae(dataclasses.replace(recipe, vae=VaeRecipe(str(tmp_path)))).dtype == torch.float32
    assert open_vae(dataclasses.replace(recipe, vae=None)) is None


def test_that_of_a_pipeline_is_found_in_its_folder(recipe, latent_pipeline_dir):
    own = open_vae(starting_from(recipe, latent_pipeline_dir, vae=VaeRecipe(from_pipeline=True)))
    inside = VaeRecipe(str(latent_pipeline_dir), subfolder="vae")
    named = open_vae(dataclasses.replace(recipe, vae=inside))
    assert all(torch.equal(value, named.state_dict()[name]) for name, value in own.state_dict().items())


def test_float16_is_left_out_where_it_would_overflow():
    assert vae_dtype(torch.float16, {"force_upcast": True}) == torch.float32
    assert vae_dtype(torch.float16, {"force_upcast": False}) == torch.float16
    assert vae_dtype(torch.bfloat16, {"force_upcast": True}) == torch.bfloat16


# --- refused ---


def test_channels_that_differ_are_named(recipe, images_dir, vae_dir):
    of_pixels = dataclasses.replace(tiny_recipe(images_dir), vae=recipe.vae)
    with pytest.raises(ValueError, match=r"`model\.in_channels` is 3, but the latents .* have 4 channels"):
        start_run(of_pixels, RunOptions(output_dir=images_dir / "never", report_to=None))
    with pytest.raises(ValueError, match=r"`model\.in_channels` is 4, but `out_channels` is 8"):
        dataclasses.replace(recipe, model={**recipe.model, "out_channels": 8})


def test_images_have_three_channels(recipe, tmp_path):
    save_vae(tmp_path, in_channels=1)
    with pytest.raises(ValueError, match="takes images with 1 channels"):
        open_vae(dataclasses.replace(recipe, vae=VaeRecipe(str(tmp_path))))


def test_what_is_not_there_or_something_else_is_refused(recipe, latent_pipeline_dir, tmp_path):
    for name, inside in ((str(tmp_path / "nothing"), None), (str(latent_pipeline_dir), None)):
        with pytest.raises(ValueError, match=r"(?s)there is no autoencoder in .*`vae\.subfolder`"):
            open_vae(dataclasses.replace(recipe, vae=VaeRecipe(name, subfolder=inside)))
    save_vae(tmp_path / "tiny")
    config = json.loads((tmp_path / "tiny" / "config.json").read_text())
    (tmp_path / "tiny" / "config.json").write_text(json.dumps({**config, "_class_name": "AutoencoderTiny"}))
    with pytest.raises(ValueError, match="is a AutoencoderTiny; training needs an AutoencoderKL"):
        open_vae(dataclasses.replace(recipe, vae=VaeRecipe(str(tmp_path / "tiny"))))


def test_a_pipeline_of_latents_needs_an_autoencoder_and_one_of_pixels_has_none(
    recipe, latent_pipeline_dir, pipeline_dir
):
    with pytest.raises(ValueError, match=r"its model denoises latents\. Add `vae: \{from_pipeline: true\}`"):
        open_vae(starting_from(recipe, latent_pipeline_dir, vae=None))
    with pytest.raises(ValueError, match=r"its model denoises pixels\. Omit `vae`"):
        open_vae(starting_from(recipe, pipeline_dir))


def test_another_size_of_latents_is_refused(recipe, latent_pipeline_dir, tmp_path):
    kinds = {"down_block_types": ("DownEncoderBlock2D",) * 3, "up_block_types": ("UpDecoderBlock2D",) * 3}
    save_vae(tmp_path, block_out_channels=(8, 8, 8), **kinds)
    other = VaeRecipe(str(tmp_path))
    assert scale_factor_of(dataclasses.replace(recipe, vae=other)) == 4
    with pytest.raises(ValueError, match=r"are 4 times smaller than images, those of .* 2 times"):
        open_vae(starting_from(recipe, latent_pipeline_dir, vae=other))


def test_a_scheduler_that_clips_is_refused(recipe, tmp_path):
    clipping = dataclasses.replace(recipe, scheduler={"clip_sample": True})
    with pytest.raises(ValueError, match=r"`scheduler: \{clip_sample: false\}`"):
        start_run(clipping, RunOptions(output_dir=tmp_path, report_to=None))


def test_fields_that_contradict_each_other_are_refused(recipe):
    with pytest.raises(FieldError, match=r"`vae\.from_pipeline` needs `pretrained`"):
        dataclasses.replace(recipe, vae=VaeRecipe(from_pipeline=True))
    for values in ({}, {"pretrained": "x", "from_pipeline": True}):
        with pytest.raises(ValueError, match=r"`vae`: set either `pretrained`"):
            read_fields(VaeRecipe, values, "vae")
    with pytest.raises(ValueError, match="with `from_pipeline`, those of the pipeline are used"):
        VaeRecipe(from_pipeline=True, subfolder="vae")


# --- what --dry_run says ---


def test_memory_counts_its_weights(recipe, no_forward, tmp_path):
    number, options = number_of_weights(), RunOptions(output_dir=tmp_path)
    assert count_vae_parameters(recipe) == number

    def taken(**fields) -> int | None:
        return estimate_stage(recipe, recipe.stages[0], dataclasses.replace(options, **fields), 0, number).autoencoder

    assert (taken(), taken(mixed_precision="bf16")) == (4 * number, 2 * number)
    assert taken(mixed_precision="fp16") == 4 * number  # this one has `force_upcast`
    assert estimate_stage(recipe, recipe.stages[0], options, 0, None).autoencoder is None


def test_sides_are_told_in_pixels_and_latents(recipe, no_forward):
    described = describe_run(recipe)
    assert "level 1: 32 pixels (16 latents)" in described
    assert f"{number_of_weights():,} parameters, frozen" in described
    assert "autoencoder 0.00" in described
    unknown = describe_run(dataclasses.replace(recipe, vae=VaeRecipe("nobody/has-this-one")))
    assert "autoencoder of nobody/has-this-one: not on this machine, not counted" in unknown
    assert "level 1: 16 latents" in unknown
    assert "autoencoder" not in describe_run(dataclasses.replace(recipe, vae=None))


def test_activations_are_those_of_latents(recipe, images_dir, tmp_path):
    options = RunOptions(output_dir=tmp_path)
    latent, pixels = (
        estimate_stage(one, one.stages[1], options, 0).activations for one in (recipe, tiny_recipe(images_dir))
    )
    # One channel more of the noisy levels, of which the model keeps a copy; not four times the pixels.
    assert pixels < latent < 1.1 * pixels
    assert of_latents(recipe, tmp_path).vae == VaeRecipe(str(tmp_path))
