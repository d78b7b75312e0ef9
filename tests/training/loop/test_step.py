# SPDX-License-Identifier: Apache-2.0
import dataclasses

import pytest
import torch
from torch._dynamo.testing import CompileCounter

from diffusers_mdm.training.data.batch import Batch
from diffusers_mdm.training.loop.stage_setup import begin_stage, end_stage, freeze_levels
from diffusers_mdm.training.loop.start import start_run
from diffusers_mdm.training.loop.step import compute_loss, noise_batch, optimizer_step, plan_steps, update_weights
from diffusers_mdm.training.state.averages import averaged_weights
from diffusers_mdm.training.state.run import Run, RunOptions
from tests.training.tiny_run import tiny_recipe


def new_run(images_dir, tmp_path, stage_fields=None, recipe_fields=None, **options) -> Run:
    recipe = dataclasses.replace(tiny_recipe(images_dir, **(stage_fields or {})), **(recipe_fields or {}))
    return start_run(recipe, RunOptions(output_dir=tmp_path, report_to=None, **options))


def batch_at(places: list[int], side: int = 8) -> Batch:
    """Images that depend on their place alone."""
    generators = [torch.Generator().manual_seed(place) for place in places]
    pixels = [torch.randint(0, 256, (3, side, side), generator=one, dtype=torch.uint8) for one in generators]
    return Batch(torch.stack(pixels), [f"red line {place % 3}" for place in places], torch.tensor(places))


def fill_gradients(run: Run, value: float) -> None:
    for parameter in run.unet.parameters():
        parameter.grad = torch.full_like(parameter, value)


def test_what_a_row_draws_depends_on_its_place_alone(images_dir, tmp_path):
    run = new_run(images_dir, tmp_path, {"caption_dropout": 0.5, "batch_fractions": None})
    run.recipe = dataclasses.replace(run.recipe, data=dataclasses.replace(run.recipe.data, random_flip=True))
    stage = run.recipe.stages[0]
    begin_stage(run, stage)
    torch.manual_seed(1)
    whole = noise_batch(run, plan_steps(run, stage), batch_at([0, 1, 2, 3]))
    torch.manual_seed(2)
    again = noise_batch(run, plan_steps(run, stage), batch_at([3, 1, 9, 2]))
    for row, place in ((0, 3), (1, 1), (3, 2)):
        assert torch.equal(whole.noise[0][place], again.noise[0][row])
        assert torch.equal(whole.clean[0][place], again.clean[0][row])
        assert whole.timesteps[place] == again.timesteps[row]
        assert whole.batch.captions[place] == again.batch.captions[row]
    assert len({tuple(level.flatten().tolist()) for level in whole.noise[0]}) == 4


def test_captions_are_dropped_and_images_flipped_at_their_rates(images_dir, tmp_path):
    run = new_run(images_dir, tmp_path, {"caption_dropout": 0.25, "batch_size": 400, "batch_fractions": None})
    run.recipe = dataclasses.replace(run.recipe, data=dataclasses.replace(run.recipe.data, random_flip=True))
    stage = run.recipe.stages[0]
    begin_stage(run, stage)
    batch = batch_at(list(range(400)))
    drawn = noise_batch(run, plan_steps(run, stage), batch)
    # Three standard deviations of 400 draws.
    assert drawn.batch.captions.count("") / 400 == pytest.approx(0.25, abs=0.065)
    flipped = (drawn.batch.pixels == batch.pixels.flip(-1)).flatten(1).all(1)
    kept = (drawn.batch.pixels == batch.pixels).flatten(1).all(1)
    assert bool((flipped | kept).all())
    assert flipped.float().mean().item() == pytest.approx(0.5, abs=0.075)


def test_training_lowers_the_loss_of_a_batch(images_dir, tmp_path):
    fields = {"learning_rate": 1e-2, "loss_weighting": "v", "lr_scheduler": "constant", "lr_warmup_steps": 0}
    run = new_run(images_dir, tmp_path, fields)
    stage = run.recipe.stages[0]
    begin_stage(run, stage)
    totals = []
    for _ in range(40):
        table = optimizer_step(
            run, plan_steps(run, stage), [batch_at([0, 1, 2, 3])]
        ).samples  # the same noise every time
        totals.append((table[0].sum() / table[1].sum()).item())
    assert totals[-1] < 0.7 * totals[0]
    assert run.progress.total_images == 160


def test_text_encoder_gets_gradients_only_when_trained(images_dir, tmp_path):
    run = new_run(images_dir, tmp_path, {"caption_dropout": 0.0}, {"zero_init": False})
    stage = run.recipe.stages[0]
    begin_stage(run, stage)
    compute_loss(run, plan_steps(run, stage), batch_at([0, 1, 2, 3]))[0].total.backward()
    assert all(parameter.grad is not None for parameter in run.text_encoder.parameters())
    assert any(parameter.grad.abs().sum() > 0 for parameter in run.text_encoder.parameters())


def test_token_table_learns_at_its_own_rate(images_dir, tmp_path):
    recipe = tiny_recipe(images_dir)
    encoder = dataclasses.replace(recipe.text_encoder, token_learning_rate_scale=20.0)
    run = new_run(
        images_dir,
        tmp_path,
        {"lr_scheduler": "constant", "lr_warmup_steps": 0},
        {"text_encoder": encoder, "zero_init": False},
    )
    stage = run.recipe.stages[0]
    begin_stage(run, stage)
    tokens = run.text_encoder.get_input_embeddings().weight
    before = tokens.detach().clone()
    optimizer_step(run, plan_steps(run, stage), [batch_at([0, 1, 2, 3])])
    rates = {group["name"]: group["lr"] for group in run.optimizer.param_groups}
    assert rates.pop("text_encoder.tokens") == pytest.approx(20 * stage.learning_rate)
    assert set(rates.values()) == {stage.learning_rate}
    # Adam's first step moves every weight that has a gradient by the learning rate.
    assert (tokens - before).detach().abs().max().item() == pytest.approx(20 * stage.learning_rate, rel=1e-2)


def test_frozen_levels_keep_the_averages_and_do_not_learn(images_dir, tmp_path):
    run = new_run(images_dir, tmp_path, {"lr_warmup_steps": 0}, {"zero_init": False})
    first, second = run.recipe.stages
    begin_stage(run, first)
    optimizer_step(run, plan_steps(run, first), [batch_at([0, 1, 2, 3])])
    next(iter(run.ema["unet"].shadows.values())).fill_(0.25)
    run.progress.stage_ended = "because"
    end_stage(run, first)
    second = dataclasses.replace(second, frozen_levels=1, gradient_accumulation_steps=1)
    begin_stage(run, second)
    inner = {name: value.clone() for name, value in run.unet.levels[0].state_dict().items()}
    assert (next(iter(run.unet.parameters())) == 0.25).all()
    text = [parameter.detach().clone() for parameter in run.text_encoder.parameters()]
    outer = run.unet.levels[1].decoder.conv_out.weight.detach().clone()
    optimizer_step(run, plan_steps(run, second), [batch_at([0, 1, 2, 3], side=16)])
    assert all(torch.equal(value, inner[name]) for name, value in run.unet.levels[0].state_dict().items())
    assert all(torch.equal(old, new) for old, new in zip(text, run.text_encoder.parameters(), strict=True))
    assert not torch.equal(outer, run.unet.levels[1].decoder.conv_out.weight)
    assert run.progress.stage_ends == (f"{first.name}: because",)


def test_training_around_frozen_levels_leaves_their_predictions_as_they_were(images_dir, tmp_path):
    run = new_run(images_dir, tmp_path, {"lr_warmup_steps": 0}, {"zero_init": False})
    stage = dataclasses.replace(run.recipe.stages[1], frozen_levels=1, gradient_accumulation_steps=1)
    begin_stage(run, stage)
    pyramid = [torch.randn(2, 3, side, side) for side in (8, 16)]
    width = run.unet.config["encoder_hid_dim"] or run.unet.config["cross_attention_dim"]
    text = torch.randn(2, 4, width)
    with torch.no_grad():
        alone = run.unet(pyramid[0], 500, text).sample
    assert run.unet.levels[1].encoder.is_closed
    for _ in range(2):
        optimizer_step(run, plan_steps(run, stage), [batch_at([0, 1, 2, 3], side=16)])
    assert all(parameter.grad is None for parameter in run.unet.levels[0].parameters())
    begin_stage(run, run.recipe.stages[1])  # where the adapter is open for training
    assert not run.unet.levels[1].encoder.is_closed
    with torch.no_grad():
        around = run.unet(pyramid, 500, text).sample
    torch.testing.assert_close(around[0], alone, atol=1e-6, rtol=1e-5)


def test_an_adapter_into_frozen_levels_that_was_trained_before_stays_open(images_dir, tmp_path):
    run = new_run(images_dir, tmp_path)
    stage = dataclasses.replace(run.recipe.stages[1], frozen_levels=1)
    begin_stage(run, run.recipe.stages[1])
    adapter = run.unet.levels[1].encoder.in_adapter
    torch.nn.init.constant_(adapter.bias, 0.1)
    freeze_levels(run.unet, stage.frozen_levels)
    assert not run.unet.levels[1].encoder.is_closed
    assert not any(parameter.requires_grad for parameter in adapter.parameters())


def test_stages_shift_the_noise_schedule(images_dir, tmp_path):
    run = new_run(images_dir, tmp_path)
    first, second = run.recipe.stages
    begin_stage(run, dataclasses.replace(first, shift_power=2.0))
    assert run.scheduler.config["shift_power"] == 2.0
    end_stage(run, first)
    begin_stage(run, second)
    assert run.scheduler.config["shift_power"] == 1.0


def test_steps_that_are_not_finite_change_nothing_and_end_the_run(images_dir, tmp_path):
    run = new_run(images_dir, tmp_path, max_skipped_steps=3)
    stage = run.recipe.stages[0]
    begin_stage(run, stage)
    before = {name: value.clone() for name, value in run.unet.state_dict().items()}
    for _ in range(2):
        fill_gradients(run, torch.nan)
        update_weights(run, stage)
    fill_gradients(run, torch.nan)
    with pytest.raises(FloatingPointError, match="3 consecutive steps"):
        update_weights(run, stage)
    assert run.progress.skipped_steps == 3
    assert all(torch.equal(value, before[name]) for name, value in run.unet.state_dict().items())
    assert run.ema["unet"].steps == 0


def test_a_good_step_forgives_the_skipped_ones(images_dir, tmp_path):
    run = new_run(images_dir, tmp_path, max_skipped_steps=2)
    begin_stage(run, run.recipe.stages[0])
    for value in (torch.inf, 0.1, torch.inf):
        fill_gradients(run, value)
        update_weights(run, run.recipe.stages[0])
    assert (run.progress.skipped_steps, run.progress.skipped_in_a_row) == (2, 1)


def test_averages_are_lent_and_taken_back(images_dir, tmp_path):
    run = new_run(images_dir, tmp_path)
    begin_stage(run, run.recipe.stages[0])
    weight = next(run.unet.parameters())
    original = weight.detach().clone()
    next(iter(run.ema["unet"].shadows.values())).fill_(3.0)
    with averaged_weights(run):
        assert (weight == 3.0).all()
        assert not run.unet.training
    assert torch.equal(weight, original)
    assert run.unet.training


@pytest.mark.parametrize("fields", [{"offload_ema": True}, {"foreach_ema": False}, {"gradient_checkpointing": True}])
def test_ways_of_saving_memory_change_no_number(images_dir, tmp_path, fields):
    weights = []
    for options in ({}, fields):
        run = new_run(images_dir, tmp_path, {"lr_warmup_steps": 0}, {"zero_init": False}, **options)
        stage = run.recipe.stages[0]
        begin_stage(run, stage)
        for _ in range(2):
            optimizer_step(run, plan_steps(run, stage), [batch_at([0, 1, 2, 3])])
        weights.append([*run.unet.parameters(), *run.ema["unet"].shadows.values()])
    assert all(torch.allclose(one, other, rtol=0, atol=1e-7) for one, other in zip(*weights, strict=True))


def test_runs_without_averages_have_none(images_dir, tmp_path):
    run = new_run(images_dir, tmp_path, recipe_fields={"use_ema": False})
    begin_stage(run, run.recipe.stages[0])
    optimizer_step(run, plan_steps(run, run.recipe.stages[0]), [batch_at([0, 1, 2, 3])])
    weight = next(run.unet.parameters()).detach().clone()
    with averaged_weights(run):
        assert torch.equal(next(run.unet.parameters()), weight)
    assert run.ema == {}


@pytest.mark.slow
def test_captions_of_other_lengths_compile_nothing_after_the_first_step(images_dir, tmp_path):
    """A compiled model has one graph for all lengths, while the batch and the sides of the levels stay the same."""
    torch._dynamo.reset()
    run = new_run(images_dir, tmp_path, {"caption_dropout": 0.0}, torch_compile=True)
    stage = run.recipe.stages[0]
    begin_stage(run, stage)
    counter = CompileCounter()
    run.unet.compile(fullgraph=True, backend=counter)  # in place of torch's default backend, which takes minutes
    graphs = []
    for number in (5, 3, 9, 4, 8, 12):
        captions = [" ".join(["red line"] * number)] * 4
        optimizer_step(run, plan_steps(run, stage), [dataclasses.replace(batch_at([0, 1, 2, 3]), captions=captions)])
        graphs.append(counter.frame_count)
    torch._dynamo.reset()
    assert graphs == [1] * 6
