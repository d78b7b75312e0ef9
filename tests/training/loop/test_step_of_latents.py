# SPDX-License-Identifier: Apache-2.0
"""From pixels to what is denoised, and the loss over latents, against sums by hand."""

import dataclasses

import pytest
import torch
import torch.nn.functional as F

from diffusers_mdm import build_pyramid
from diffusers_mdm.training.data.batch import Batch
from diffusers_mdm.training.loop.stage_setup import begin_stage, place_modules
from diffusers_mdm.training.loop.start import start_run
from diffusers_mdm.training.loop.step import (
    clean_pyramid,
    compute_loss,
    noise_batch,
    optimizer_step,
    plan_steps,
    predict,
)
from diffusers_mdm.training.loss.draws import GeneratorDraws
from diffusers_mdm.training.state.run import Run, RunOptions
from tests.training.tiny_latents import CHANNELS, latent_recipe, save_vae
from tests.training.tiny_run import tiny_recipe


@pytest.fixture(scope="module")
def vae_dir(tmp_path_factory):
    # A wide posterior, so that draws from it can be told from its mode.
    return save_vae(tmp_path_factory.mktemp("vae"))


@pytest.fixture
def run(images_dir, vae_dir, tmp_path) -> Run:
    """At the beginning of its second stage."""
    recipe = dataclasses.replace(latent_recipe(images_dir, vae_dir, batch_size=4), zero_init=False)
    started = start_run(recipe, RunOptions(output_dir=tmp_path, report_to=None))
    started.progress.stage_index = 1
    begin_stage(started, recipe.stages[1])
    return started


def batch_at(places: list[int], side: int = 32) -> Batch:
    """Images that depend on their place alone."""
    pixels = [
        torch.randint(0, 256, (3, side, side), generator=torch.Generator().manual_seed(place), dtype=torch.uint8)
        for place in places
    ]
    return Batch(torch.stack(pixels), ["red line"] * len(places), torch.tensor(places))


@pytest.mark.parametrize("offload", [False, pytest.param(True, marks=pytest.mark.gpu)])
def test_frozen_modules_are_on_the_device_while_they_are_used(run, offload):
    stage, device = run.recipe.stages[1], run.accelerator.device.type
    run.options = dataclasses.replace(run.options, offload=offload)
    place_modules(run)
    at_rest = "cpu" if offload else device
    assert run.frozen_modules == [run.vae]
    assert run.vae.device.type == at_rest
    with run.at_hand(run.vae, None):
        assert run.vae.device.type == device
    compute_loss(run, plan_steps(run, stage), batch_at([0, 1, 2, 3]))
    assert run.vae.device.type == at_rest


def encoded(run: Run, pixels: torch.Tensor):
    with torch.no_grad():
        return run.vae.encode(pixels / 127.5 - 1).latent_dist


def normalised(run: Run, latents: torch.Tensor) -> torch.Tensor:
    return (latents - run.vae.config.shift_factor) * run.vae.config.scaling_factor


def started_generators(run: Run, stage, batch: Batch) -> list[torch.Generator]:
    """The generators of the rows after what is drawn before the latents."""
    place = (run.options.seed, stage.seed, run.progress.stage_index)
    draws = GeneratorDraws(place, batch.positions, torch.device("cpu"))
    draws.chances()
    draws.timestep_chances()
    return draws.latent_generators()


def test_pixels_are_averaged_as_they_were(images_dir, tmp_path):
    run = start_run(tiny_recipe(images_dir), RunOptions(output_dir=tmp_path, report_to=None))
    pixels = batch_at([0, 1], 8).pixels
    generators = [torch.Generator().manual_seed(row) for row in range(2)]
    before = generators[0].get_state()
    levels = clean_pyramid(run, run.recipe.stages[0], pixels, generators)
    assert torch.equal(levels[0], pixels / 127.5 - 1)
    assert torch.equal(generators[0].get_state(), before)  # so that older runs resume with the same numbers


def test_levels_are_pooled_latents(run):
    pixels = batch_at([0, 1, 2]).pixels
    levels = clean_pyramid(run, run.recipe.stages[1], pixels)
    assert [tuple(level.shape) for level in levels] == [(3, CHANNELS, 8, 8), (3, CHANNELS, 16, 16)]
    expected = normalised(run, encoded(run, pixels).mode())
    torch.testing.assert_close(levels[1], expected, atol=1e-5, rtol=0)
    torch.testing.assert_close(levels[0], F.avg_pool2d(expected, 2), atol=1e-5, rtol=0)
    assert not any(level.requires_grad for level in levels)
    assert torch.equal(levels[1], clean_pyramid(run, run.recipe.stages[1], pixels)[1])


def test_training_draws_each_row_from_its_posterior_with_its_own_generator(run):
    def draw(rows):
        generators = [torch.Generator().manual_seed(row) for row in rows]
        return clean_pyramid(run, run.recipe.stages[1], batch_at(rows).pixels, generators)[1]

    posterior = encoded(run, batch_at([0, 1, 2]).pixels)
    noise = torch.cat([torch.randn(1, CHANNELS, 16, 16, generator=torch.Generator().manual_seed(n)) for n in range(3)])
    expected = normalised(run, posterior.mean + posterior.std * noise)
    drawn = draw([0, 1, 2])
    torch.testing.assert_close(drawn, expected, atol=1e-5, rtol=0)
    assert (drawn - normalised(run, posterior.mode())).std() > 0.1  # the posterior is wide enough to see it
    # Convolutions of another batch round in another way.
    torch.testing.assert_close(draw([2, 0])[0], drawn[2], atol=1e-5, rtol=0)


def test_frames_of_clips_are_encoded_one_by_one(run):
    clips = torch.stack([batch_at([0, 1, 2]).pixels, batch_at([3, 4, 5]).pixels]).transpose(1, 2)  # (2, 3, F, 32, 32)
    run.unet.geometry = dataclasses.replace(run.unet.geometry, frames=(3, 3))
    levels = clean_pyramid(run, run.recipe.stages[1], clips)
    assert [tuple(level.shape) for level in levels] == [(2, CHANNELS, 3, 8, 8), (2, CHANNELS, 3, 16, 16)]
    expected = normalised(run, encoded(run, batch_at([5]).pixels).mode())
    torch.testing.assert_close(levels[1][1:, :, 2], expected, atol=1e-5, rtol=0)
    generators = [torch.Generator().manual_seed(row) for row in range(2)]
    assert clean_pyramid(run, run.recipe.stages[1], clips, generators)[1].shape == levels[1].shape


def test_loss_is_that_of_encoded_images(run):
    """Noise, v and the weighted squared error of two levels, from the latents on by hand."""
    stage = run.recipe.stages[1]
    batch = batch_at([4, 5, 6, 7])
    loss, _ = compute_loss(run, plan_steps(run, stage), batch)

    generators = started_generators(run, stage, batch)
    posterior = encoded(run, batch.pixels)

    def draw(number, *shape):
        return torch.cat([torch.randn(1, *shape, generator=generator) for generator in generators[:number]])

    latents = normalised(run, posterior.mean + posterior.std * draw(4, CHANNELS, 16, 16))
    inner, outer = build_pyramid(latents, (8, 16))
    clean, rows = [inner, outer[:2]], (4, 2)
    noise = [draw(4, CHANNELS, 8, 8), draw(2, CHANNELS, 16, 16)]
    drawn = noise_batch(run, plan_steps(run, stage), batch)
    total = torch.zeros(())
    alphas = [run.scheduler.level_alphas_cumprod(clean, drawn.timesteps)[level][: rows[level]] for level in (0, 1)]
    shaped = [alpha[:, None, None, None] for alpha in alphas]
    noisy = [a.sqrt() * x + (1 - a).sqrt() * e for a, x, e in zip(shaped, clean, noise, strict=True)]
    predictions = predict(run, noisy, drawn.timesteps, drawn.batch)
    for level, weight in enumerate((1.0, 2.0)):
        velocity = shaped[level].sqrt() * noise[level] - (1 - shaped[level]).sqrt() * clean[level]
        errors = (predictions[level] - velocity).square().mean((1, 2, 3))
        total = total + weight * (alphas[level] * errors).mean()
    torch.testing.assert_close(loss.total, total, atol=1e-5, rtol=1e-5)


def test_images_are_mirrored_before_they_are_encoded(run):
    run.recipe = dataclasses.replace(run.recipe, data=dataclasses.replace(run.recipe.data, random_flip=True))
    stage = dataclasses.replace(run.recipe.stages[1], batch_size=8, batch_fractions=None)
    batch = batch_at(list(range(8)))
    drawn = noise_batch(run, plan_steps(run, stage), batch)
    flipped = (drawn.batch.pixels == batch.pixels.flip(-1)).flatten(1).all(1)
    assert 0 < flipped.sum() < 8
    generators = started_generators(run, stage, batch)
    expected = clean_pyramid(run, stage, drawn.batch.pixels, generators)
    torch.testing.assert_close(drawn.clean, expected, atol=1e-6, rtol=0)


def test_the_autoencoder_does_not_learn(run):
    before = {name: value.clone() for name, value in run.vae.state_dict().items()}
    optimizer_step(run, plan_steps(run, run.recipe.stages[1]), [batch_at([0, 1, 2, 3])] * 2)
    assert all(torch.equal(value, before[name]) for name, value in run.vae.state_dict().items())
    trained = {id(value) for group in run.optimizer.param_groups for value in group["params"]}
    assert trained.isdisjoint({id(value) for value in run.vae.parameters()})
