# SPDX-License-Identifier: Apache-2.0
"""Steps on clips and images together, on batches made by hand."""

import dataclasses

import pytest
import torch

from diffusers_mdm.training.data.batch import Batch
from diffusers_mdm.training.loop.stage_setup import begin_stage
from diffusers_mdm.training.loop.start import start_run
from diffusers_mdm.training.loop.step import compute_loss, noise_batch, optimizer_step, plan_steps, predict
from diffusers_mdm.training.recipe.clip_stages import joint_stage
from diffusers_mdm.training.recipe.recipe import OptimizerRecipe
from diffusers_mdm.training.state.run import Run, RunOptions
from tests.training.tiny_clips import NUM_FRAMES, video_recipe

SIDE = 8


def clips_run(clips_dir, images_dir, folder, recipe_fields=None, **stage_fields) -> Run:
    """A run in a stage of clips of one level: `batch_size` 4, two images beside them."""
    recipe = video_recipe(clips_dir, images_dir)
    stage = dataclasses.replace(
        recipe.stages[1], **{"batch_size": 4, "gradient_accumulation_steps": 1, **stage_fields}
    )
    # Pads that do not count, and no division by tiny numbers, which would magnify rounding.
    fields = {
        "model": {**recipe.model, "use_cross_attention_mask": True},
        "optimizer": OptimizerRecipe(adam_epsilon=1e-2),
        "zero_init": False,
        **(recipe_fields or {}),
    }
    recipe = dataclasses.replace(recipe, stages=(stage,), **fields)
    run = start_run(recipe, RunOptions(output_dir=folder, report_to=None))
    begin_stage(run, stage)
    return run


def batch_at(places: list[int], *frames: int) -> Batch:
    """Images, or clips of so many frames, that depend on their place alone."""
    generators = [torch.Generator().manual_seed(place) for place in places]
    shape = (3, *frames, SIDE, SIDE)
    pixels = [torch.randint(0, 256, shape, generator=one, dtype=torch.uint8) for one in generators]
    return Batch(torch.stack(pixels), [f"red line {place % 3}" for place in places], torch.tensor(places))


def clips_at(*places: int) -> Batch:
    return batch_at(list(places), NUM_FRAMES)


def images_at(*places: int) -> Batch:
    return batch_at(list(places))


def gradients(run: Run) -> dict[str, torch.Tensor]:
    named = run.model.named_parameters()
    return {name: value.grad.clone() for name, value in named if value.grad is not None}


def test_the_gradient_is_that_of_the_mean_over_all_rows(clips_dir, images_dir, tmp_path, monkeypatch):
    run = clips_run(clips_dir, images_dir, tmp_path)
    plan = plan_steps(run, run.recipe.stages[0])
    clips, images = clips_at(0, 1, 2, 3), images_at(0, 1)
    losses = [compute_loss(run, part, batch)[0] for part, batch in ((plan, clips), (plan.joint_images, images))]
    rows = torch.cat([loss.per_sample for loss in losses])
    assert len(rows) == 6
    rows.mean().backward()
    expected = gradients(run)
    run.model.zero_grad()

    seen = {}
    monkeypatch.setattr(
        "diffusers_mdm.training.loop.step.update_weights", lambda run, stage: seen.update(gradients(run))
    )
    tables = optimizer_step(run, plan, [clips], [images])
    assert seen.keys() == expected.keys()
    for name, gradient in expected.items():
        torch.testing.assert_close(seen[name], gradient, rtol=1e-4, atol=1e-6)
    assert (tables.samples[1].sum(), tables.joint_images[1].sum()) == (4, 2)
    torch.testing.assert_close(tables.joint_images[0].sum(), losses[1].sample_errors[0].sum())


def test_accumulated_steps_equal_whole_ones(clips_dir, images_dir, tmp_path):
    """Four clips and two images at once, or twice two clips and an image; row j of batch m has place 2j + m."""
    whole = clips_run(clips_dir, images_dir, tmp_path / "whole")
    halves = clips_run(
        clips_dir, images_dir, tmp_path / "halves", batch_size=2, joint_images=1, gradient_accumulation_steps=2
    )
    for step in range(2):
        four, two = 4 * step, 2 * step
        optimizer_step(
            whole,
            plan_steps(whole, whole.recipe.stages[0]),
            [clips_at(*range(four, four + 4))],
            [images_at(two, two + 1)],
        )
        optimizer_step(
            halves,
            plan_steps(halves, halves.recipe.stages[0]),
            [clips_at(four, four + 2), clips_at(four + 1, four + 3)],
            [images_at(two), images_at(two + 1)],
        )
    for (name, one), other in zip(whole.model.named_parameters(), halves.model.parameters(), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-6, msg=name)


def test_images_have_random_streams_of_their_own(clips_dir, images_dir, tmp_path):
    run = clips_run(clips_dir, images_dir, tmp_path, joint_images=4)
    plan = plan_steps(run, run.recipe.stages[0])
    one, again = (noise_batch(run, plan.joint_images, images_at(*places)) for places in ((0, 1, 2, 3), (3, 2, 9, 8)))
    assert torch.equal(one.noise[0][3], again.noise[0][0])
    assert torch.equal(one.timesteps[[3, 2]], again.timesteps[:2])
    clips = noise_batch(run, plan, clips_at(0, 1, 2, 3))
    assert not torch.equal(one.timesteps, clips.timesteps)


def test_what_is_random_in_a_clip(clips_dir, images_dir, tmp_path):
    """One t and one flip for all frames, noise of each frame its own, its offset common to all pixels and frames."""
    run = clips_run(clips_dir, images_dir, tmp_path, batch_size=16, caption_dropout=0.5)
    run.recipe = dataclasses.replace(run.recipe, data=dataclasses.replace(run.recipe.data, random_flip=True))
    stage, places = run.recipe.stages[0], tuple(range(16))
    batch = clips_at(*places)
    drawn = noise_batch(run, plan_steps(run, stage), batch)
    assert drawn.clean[0].shape == drawn.noise[0].shape == (16, 3, NUM_FRAMES, SIDE, SIDE)
    assert drawn.timesteps.shape == (16,)
    flipped = (drawn.batch.pixels == batch.pixels.flip(-1)).flatten(1).all(1)
    kept = (drawn.batch.pixels == batch.pixels).flatten(1).all(1)
    assert bool((flipped ^ kept).all())
    assert 0 < flipped.sum() < 16
    assert 0 < drawn.batch.captions.count("") < 16
    frames = drawn.noise[0].unbind(2)
    assert not any(torch.equal(frames[0], other) for other in frames[1:])

    shifted = noise_batch(run, plan_steps(run, dataclasses.replace(stage, noise_offset=0.5)), batch)
    offset = shifted.noise[0] - drawn.noise[0]
    torch.testing.assert_close(offset, offset[:, :, :1, :1, :1].expand_as(offset), rtol=0, atol=1e-5)
    assert len(offset[:, :, 0, 0, 0].unique()) == 48


def test_images_are_flipped_as_their_own_data_says(clips_dir, images_dir, tmp_path):
    run = clips_run(clips_dir, images_dir, tmp_path, joint_images=16)
    run.recipe = dataclasses.replace(run.recipe, images=dataclasses.replace(run.recipe.images, random_flip=True))
    plan, places = plan_steps(run, run.recipe.stages[0]), tuple(range(16))
    images, clips = images_at(*places), clips_at(0, 1, 2, 3)
    assert torch.equal(noise_batch(run, plan, clips).batch.pixels, clips.pixels)
    flipped = noise_batch(run, plan.joint_images, images).batch.pixels != images.pixels
    assert 0 < flipped.flatten(1).any(1).sum() < 16


def nested_in_time(recipe):
    """One frame of 8 pixels, then four."""
    first, second = recipe.levels
    plain = {key: value for key, value in first.items() if not key.startswith(("temporal", "num_frames"))}
    outer = {
        **second,
        "block_out_channels": [32, 8, 32],
        "layers_per_block": [1, 1, 1],
        "attention_layers_per_block": [0, 0, 0],
        "num_frames": 4,
        "temporal_layers_per_block": [1, 0, 1],
        "temporal_downsample": True,
    }
    stages = (
        dataclasses.replace(recipe.stages[0], as_images=False),
        dataclasses.replace(recipe.stages[2], batch_size=4, joint_images=2),
    )
    return dataclasses.replace(recipe, levels=(plain, outer), stages=stages)


def test_images_go_through_the_levels_before_frames_are_resampled(clips_dir, images_dir, tmp_path):
    recipe = nested_in_time(video_recipe(clips_dir, images_dir))
    stage = recipe.stages[1]
    images = joint_stage(recipe, stage)
    assert (images.levels, images.level_weights, images.samples_per_level) == (1, (1.0,), (2,))
    run = start_run(recipe, RunOptions(output_dir=tmp_path, report_to=None))
    run.progress.stage_index = 1
    begin_stage(run, stage)
    clips = batch_at([0, 1, 2, 3], 4)
    plan = plan_steps(run, stage)
    drawn = noise_batch(run, plan, clips)
    assert [tuple(level.shape) for level in drawn.clean] == [(4, 3, 1, 8, 8), (2, 3, 4, 8, 8)]
    assert torch.equal(drawn.clean[0][:2, :, 0], drawn.clean[1][:, :, 0])
    tables = optimizer_step(run, plan, [clips], [images_at(0, 1)])
    assert tables.samples.shape[1] == 2
    assert tables.joint_images.shape[1] == 1


@pytest.mark.parametrize("channels_last", [None, True, False])
def test_clips_of_any_layout_are_predicted(clips_dir, images_dir, tmp_path, channels_last):
    run = clips_run(clips_dir, images_dir, tmp_path, {"channels_last": channels_last})
    drawn = noise_batch(run, plan_steps(run, run.recipe.stages[0]), clips_at(0, 1, 2, 3))
    (prediction,) = predict(run, drawn.noise, drawn.timesteps, drawn.batch)
    assert prediction.shape == (4, 3, NUM_FRAMES, SIDE, SIDE)
