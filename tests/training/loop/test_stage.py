# SPDX-License-Identifier: Apache-2.0
import dataclasses
import os
import signal

import pytest

from diffusers_mdm.training.data.sources import open_training_images
from diffusers_mdm.training.loop.engine import start_run
from diffusers_mdm.training.loop.interruption import Interruption, RunInterrupted
from diffusers_mdm.training.loop.stage import StageHooks, batch_order, train_stage
from diffusers_mdm.training.recipe.recipe import Recipe
from diffusers_mdm.training.state.run import Run, RunOptions
from tests.training.tiny_run import tiny_recipe


class Asked:
    """What a stage asks of the engine, in order: ("checkpoint" or "validate", step)."""

    def __init__(self) -> None:
        self.calls: list[tuple[str, int]] = []
        self.needed: list[bool] = []
        self.interruption = Interruption()

    def hooks(self) -> StageHooks:
        return StageHooks(self.checkpoint, self.validate, None, self.interruption)

    def checkpoint(self, run: Run, needed: bool) -> None:
        self.calls.append(("checkpoint", run.progress.total_steps))
        self.needed.append(needed)

    def validate(self, run: Run) -> None:
        self.calls.append(("validate", run.progress.total_steps))


def train_first_stage(recipe: Recipe, output_dir, hooks: StageHooks, **options) -> Run:
    run = start_run(recipe, RunOptions(output_dir=output_dir, report_to=None, **options))
    train_stage(run, recipe.stages[0], open_training_images(recipe.data, 8), hooks)
    return run


def test_stages_count_steps_and_images_and_ask_in_time(pictures_dir, tmp_path):
    asked = Asked()
    run = train_first_stage(
        tiny_recipe(pictures_dir), tmp_path, asked.hooks(), checkpointing_steps=3, validation_steps=2
    )
    # A stage's last step has a checkpoint and a drawing whatever its number.
    assert asked.calls == [("validate", 2), ("checkpoint", 3), ("checkpoint", 4), ("validate", 4)]
    assert run.progress.total_images == 16
    assert (run.progress.stage_index, run.progress.stage_step, run.progress.stage_ended) == (1, 0, None)
    assert run.progress.stage_ends == ("inner: all its steps were done",)


@pytest.mark.parametrize(("images", "steps"), [(16, 4), (17, 5), (5, 2)])
def test_stages_end_by_images_rounded_up_to_steps(pictures_dir, tmp_path, images, steps):
    recipe = tiny_recipe(pictures_dir, steps=None, images=images, gradient_accumulation_steps=1)
    run = train_first_stage(recipe, tmp_path, Asked().hooks())
    assert (run.progress.total_steps, run.progress.total_images) == (steps, 4 * steps)


def test_a_signal_ends_the_stage_after_its_step_with_a_checkpoint(pictures_dir, tmp_path):
    asked = Asked()
    hooks = dataclasses.replace(asked.hooks(), validate=lambda run: os.kill(os.getpid(), signal.SIGTERM))
    with asked.interruption.listening(), pytest.raises(RunInterrupted, match="after step 2; resume with train again"):
        train_first_stage(tiny_recipe(pictures_dir), tmp_path, hooks, validation_steps=1, resume_command="train again")
    assert asked.calls == [("checkpoint", 2)]
    assert asked.needed == [True]


def test_stages_and_seeds_have_orders_of_their_own(pictures_dir, tmp_path):
    run = start_run(tiny_recipe(pictures_dir), RunOptions(output_dir=tmp_path, report_to=None))
    seeds = {batch_order(run, dataclasses.replace(run.recipe.stages[0], seed=seed)).seed for seed in range(3)}
    run.progress.stage_index = 1
    seeds.add(batch_order(run, run.recipe.stages[0]).seed)
    assert len(seeds) == 4
