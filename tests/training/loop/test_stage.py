# SPDX-License-Identifier: Apache-2.0
import dataclasses
import os
import signal

import pytest

from diffusers_mdm.training.data.sources import open_training_images
from diffusers_mdm.training.loop import stage
from diffusers_mdm.training.loop.interruption import Interruption, RunInterrupted
from diffusers_mdm.training.loop.stage import batch_order, train_stage
from diffusers_mdm.training.loop.stage_data import StageData
from diffusers_mdm.training.loop.start import start_run
from diffusers_mdm.training.recipe.recipe import Recipe
from diffusers_mdm.training.state.run import Run, RunOptions
from tests.training.tiny_run import tiny_recipe


@pytest.fixture
def asked(monkeypatch) -> list[tuple[str, int]]:
    """What a stage keeps in the middle of it, in order: ("checkpoint", "needed checkpoint" or "validate", step)."""
    calls = []

    def keep_checkpoint(run: Run, needed: bool) -> None:
        calls.append(("needed checkpoint" if needed else "checkpoint", run.progress.total_steps))

    monkeypatch.setattr(stage, "keep_checkpoint", keep_checkpoint)
    monkeypatch.setattr(stage, "draw_validation", lambda run: calls.append(("validate", run.progress.total_steps)))
    return calls


def train_first_stage(recipe: Recipe, output_dir, interruption: Interruption | None = None, **options) -> Run:
    run = start_run(recipe, RunOptions(output_dir=output_dir, report_to=None, **options))
    data = StageData(open_training_images(recipe.data, 8))
    train_stage(run, recipe.stages[0], data, interruption or Interruption())
    return run


def test_stages_count_steps_and_images_and_keep_in_time(images_dir, tmp_path, asked):
    run = train_first_stage(tiny_recipe(images_dir), tmp_path, checkpointing_steps=3, validation_steps=2)
    # A stage's last step has a checkpoint and a drawing whatever its number.
    assert asked == [("validate", 2), ("checkpoint", 3), ("checkpoint", 4), ("validate", 4)]
    assert run.progress.total_images == 16
    assert (run.progress.stage_index, run.progress.stage_step, run.progress.stage_ended) == (1, 0, None)
    assert run.progress.stage_ends == ("inner: all its steps were done",)


@pytest.mark.parametrize(("images", "steps"), [(16, 4), (17, 5), (5, 2)])
@pytest.mark.usefixtures("asked")
def test_stages_end_by_images_rounded_up_to_steps(images_dir, tmp_path, images, steps):
    recipe = tiny_recipe(images_dir, steps=None, images=images, gradient_accumulation_steps=1)
    run = train_first_stage(recipe, tmp_path)
    assert (run.progress.total_steps, run.progress.total_images) == (steps, 4 * steps)


def test_a_signal_ends_the_stage_after_its_step_with_a_checkpoint(images_dir, tmp_path, asked, monkeypatch):
    interruption, settings = Interruption(), {"validation_steps": 1, "resume_command": "train again"}
    monkeypatch.setattr(stage, "draw_validation", lambda run: os.kill(os.getpid(), signal.SIGTERM))
    with interruption.listening(), pytest.raises(RunInterrupted, match="after step 2; resume with train again"):
        train_first_stage(tiny_recipe(images_dir), tmp_path, interruption, **settings)
    assert asked == [("needed checkpoint", 2)]


def test_stages_and_seeds_have_orders_of_their_own(images_dir, tmp_path):
    run = start_run(tiny_recipe(images_dir), RunOptions(output_dir=tmp_path, report_to=None))
    seeds = {batch_order(run, dataclasses.replace(run.recipe.stages[0], seed=seed)).seed for seed in range(3)}
    run.progress.stage_index = 1
    seeds.add(batch_order(run, run.recipe.stages[0]).seed)
    assert len(seeds) == 4
