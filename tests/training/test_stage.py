# SPDX-License-Identifier: Apache-2.0
import dataclasses

import pytest
import torch
from tiny_run import tiny_recipe

from diffusers_mdm.training.averaging import averaged_weights
from diffusers_mdm.training.data import CaptionedImages, load_captioned_split
from diffusers_mdm.training.engine import stage_side, start_run
from diffusers_mdm.training.run import Run, RunOptions
from diffusers_mdm.training.stage import (
    begin_stage,
    compute_loss,
    drop_captions,
    learning_rate_factor,
    seed_step,
    train_stage,
    update_weights,
)


def new_run(pictures_dir, tmp_path, stage_fields=None, **options) -> tuple[Run, CaptionedImages]:
    recipe = tiny_recipe(pictures_dir, **(stage_fields or {}))
    rows = load_captioned_split(recipe.data, "train")
    options = RunOptions(output_dir=tmp_path, report_to=None, **options)
    run = start_run(recipe, options, rows["text"])
    return run, CaptionedImages(rows, recipe.data, stage_side(recipe, recipe.stages[0].levels))


def batch_of(images: CaptionedImages, rows: range) -> dict:
    return {"pixels": images.pixels[rows.start : rows.stop], "captions": [images.captions[row] for row in rows]}


def fill_gradients(run: Run, value: float) -> None:
    for parameter in run.unet.parameters():
        parameter.grad = torch.full_like(parameter, value)


def test_learning_rate_warms_up_and_falls(pictures_dir):
    stage = dataclasses.replace(tiny_recipe(pictures_dir).stages[0], steps=110, lr_warmup_steps=10)
    factors = [learning_rate_factor(stage, step) for step in range(110)]
    assert factors[0] == 0.1
    assert factors[9] == factors[10] == 1.0
    assert factors[60] == pytest.approx(0.5)
    assert 0 < factors[-1] < 0.001
    constant = dataclasses.replace(stage, lr_scheduler="constant_with_warmup")
    assert learning_rate_factor(constant, 100) == 1.0
    linear = dataclasses.replace(stage, lr_scheduler="linear")
    assert learning_rate_factor(linear, 60) == pytest.approx(0.5)


def test_captions_are_dropped_at_their_rate():
    captions = ["red line"] * 4000
    dropped = drop_captions(captions, 0.25)
    assert set(dropped) == {"", "red line"}
    assert dropped.count("") / 4000 == pytest.approx(0.25, abs=0.03)
    assert drop_captions(captions, 0.0) == captions


def test_training_lowers_the_loss_of_a_batch(pictures_dir, tmp_path):
    run, images = new_run(
        pictures_dir,
        tmp_path,
        {"learning_rate": 1e-2, "loss_weighting": "v", "lr_scheduler": "constant", "lr_warmup_steps": 0},
    )
    stage = run.recipe.stages[0]
    begin_stage(run, stage)
    pipeline, batch, totals = run.pipeline(), batch_of(images, range(4)), []
    for _ in range(40):
        seed_step(run, stage, 0)  # the first step's noise every time
        run.progress.stage_step = 0
        loss = compute_loss(run, stage, run.unet, pipeline, batch)
        loss.total.backward()
        update_weights(run, stage)
        run.progress.stage_step = 0
        totals.append(loss.total.item())
    assert totals[-1] < 0.7 * totals[0]


def test_text_encoder_gets_gradients_only_when_trained(pictures_dir, tmp_path):
    run, images = new_run(pictures_dir, tmp_path, {"caption_dropout": 0.0})
    stage = run.recipe.stages[0]
    # At the start the residual branches are zero and hide the text from the loss.
    for parameter in run.unet.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    begin_stage(run, stage)
    compute_loss(run, stage, run.unet, run.pipeline(), batch_of(images, range(4))).total.backward()
    assert all(parameter.grad is not None for parameter in run.text_encoder.parameters())
    assert any(parameter.grad.abs().sum() > 0 for parameter in run.text_encoder.parameters())


def test_steps_that_are_not_finite_change_nothing_and_end_the_run(pictures_dir, tmp_path):
    run, _ = new_run(pictures_dir, tmp_path, max_skipped_steps=3)
    stage = run.recipe.stages[0]
    begin_stage(run, stage)
    before = {name: value.clone() for name, value in run.unet.state_dict().items()}
    for _ in range(2):
        fill_gradients(run, torch.nan)
        update_weights(run, stage)
    fill_gradients(run, torch.nan)
    with pytest.raises(FloatingPointError, match="3 steps in a row"):
        update_weights(run, stage)
    assert run.progress.skipped_steps == 3
    assert all(torch.equal(value, before[name]) for name, value in run.unet.state_dict().items())
    assert run.ema["unet"].optimization_step == 0


def test_a_good_step_forgives_the_skipped_ones(pictures_dir, tmp_path):
    run, _ = new_run(pictures_dir, tmp_path, max_skipped_steps=2)
    begin_stage(run, run.recipe.stages[0])
    for value in (torch.inf, 0.1, torch.inf):
        fill_gradients(run, value)
        update_weights(run, run.recipe.stages[0])
    assert (run.progress.skipped_steps, run.progress.skipped_in_a_row) == (2, 1)


def test_stages_count_steps_and_images_and_ask_for_checkpoints(pictures_dir, tmp_path):
    run, images = new_run(pictures_dir, tmp_path, checkpointing_steps=3)
    asked = []
    train_stage(run, run.recipe.stages[0], images, lambda run: asked.append(run.progress.total_steps))
    assert asked == [3, 4]
    assert run.progress.total_images == 16
    assert (run.progress.stage_index, run.progress.stage_step) == (1, 0)


def test_averages_are_lent_and_taken_back(pictures_dir, tmp_path):
    run, _ = new_run(pictures_dir, tmp_path)
    begin_stage(run, run.recipe.stages[0])
    weight = next(run.unet.parameters())
    original = weight.detach().clone()
    run.ema["unet"].shadow_params[0].fill_(3.0)
    with averaged_weights(run):
        assert (weight == 3.0).all()
        assert not run.unet.training
    assert torch.equal(weight, original)
    assert run.unet.training
