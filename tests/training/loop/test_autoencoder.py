# SPDX-License-Identifier: Apache-2.0
"""Training an autoencoder: it learns, its latents are scaled, and a model can be trained on them."""

import dataclasses

import pytest
import torch
from diffusers import AutoencoderKL

from diffusers_mdm import DiffusionPipeline
from diffusers_mdm.cli.training import autoencoder
from diffusers_mdm.training.loop.autoencoder import (
    AutoencoderRecipe,
    build_autoencoder,
    image_batches,
    losses,
    train_autoencoder,
)
from diffusers_mdm.training.loop.engine import run_recipe
from diffusers_mdm.training.recipe.data import DataRecipe
from diffusers_mdm.training.recipe.pretrained import VaeRecipe
from diffusers_mdm.training.state.run import RunOptions
from tests.training.tiny_run import tiny_recipe

TINY = AutoencoderRecipe(resolution=16, block_out_channels=(8, 8), norm_num_groups=4, steps=30, batch_size=6)


@pytest.fixture(scope="module")
def trained(images_dir, tmp_path_factory):
    folder = tmp_path_factory.mktemp("autoencoder") / "vae"
    return train_autoencoder(TINY, DataRecipe(path=str(images_dir), caption=""), folder), folder


def test_it_learns_and_scales_its_latents(trained, images_dir):
    vae, folder = trained
    saved = AutoencoderKL.from_pretrained(folder)
    assert saved.config.scaling_factor == vae.config.scaling_factor
    with image_batches(TINY, DataRecipe(path=str(images_dir), caption="")) as batches, torch.no_grad():
        images = next(batches)
        before, after = (
            float(losses(each, images, torch.Generator().manual_seed(0))[0])
            for each in (build_autoencoder(TINY), saved)
        )
        latents = saved.encode(images).latent_dist.mode()
    assert after < 0.5 * before
    scaled = (latents - saved.config.shift_factor) * saved.config.scaling_factor
    assert abs(float(scaled.mean())) < 0.2
    assert float(scaled.std()) == pytest.approx(1.0, abs=0.2)


def test_weights_depend_on_the_seed_only():
    torch.manual_seed(5)
    first = build_autoencoder(TINY).state_dict()
    torch.rand(3)
    again, other = build_autoencoder(TINY).state_dict(), build_autoencoder(dataclasses.replace(TINY, seed=1))
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert any(not torch.equal(first[name], value) for name, value in other.state_dict().items())


def test_a_model_is_trained_on_its_latents(trained, images_dir, tmp_path):
    recipe = tiny_recipe(images_dir, steps=1, lr_warmup_steps=0)
    latent = dataclasses.replace(
        recipe,
        model={**recipe.model, "in_channels": 4, "out_channels": 4},
        levels=recipe.levels[:1],
        stages=recipe.stages[:1],
        vae=VaeRecipe(pretrained=str(trained[1])),
        scheduler={"clip_sample": False},
        validation=dataclasses.replace(recipe.validation, prompts=()),
    )
    run_recipe(latent, RunOptions(output_dir=tmp_path / "run", report_to=None))
    pipeline = DiffusionPipeline.from_pretrained(tmp_path / "run")
    assert pipeline("a", num_inference_steps=1, output_type="pt").images.shape == (1, 3, 16, 16)


def test_the_command_trains_what_its_flags_say(images_dir, tmp_path):
    words = ["--train_data_dir", str(images_dir), "--resolution", "16", "--block_out_channels", "8", "16"]
    words += ["--norm_num_groups", "8", "--latent_channels", "2", "--max_train_steps", "1", "--train_batch_size", "2"]
    out = tmp_path / "vae"
    assert autoencoder.run("train", [*words, "--output_dir", str(out), "--device", "cpu"]) == 0
    assert AutoencoderKL.load_config(out)["latent_channels"] == 2
    with pytest.raises(ValueError, match="exists"):
        autoencoder.run("train", [*words, "--output_dir", str(out)])


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"block_out_channels": (8, 10)}, "multiples of `norm_num_groups`"),
        ({"block_out_channels": ()}, "block_out_channels"),
        ({"resolution": 17}, "resolution"),
        ({"learning_rate": 0.0}, "learning_rate"),
        ({"steps": 0}, "steps"),
    ],
)
def test_wrong_settings(fields, message):
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(TINY, **fields)


def test_nothing_is_left_of_a_failed_run(images_dir, tmp_path):
    hot = dataclasses.replace(TINY, learning_rate=1e30, steps=20)
    with pytest.raises(FloatingPointError, match="not finite"):
        train_autoencoder(hot, DataRecipe(path=str(images_dir), caption=""), tmp_path / "vae")
    assert not list(tmp_path.iterdir())
