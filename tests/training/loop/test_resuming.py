# SPDX-License-Identifier: Apache-2.0
"""Runs that go on under other terms: fewer steps or more, from the start or from further back, after a full disk."""

import dataclasses
import json
import logging
import shutil

import pytest

from diffusers_mdm import MDMPipeline
from diffusers_mdm.training.loop import finish
from diffusers_mdm.training.loop.engine import run_recipe
from diffusers_mdm.training.loop.stage import why_over
from diffusers_mdm.training.recipe.stage import PlateauRecipe
from diffusers_mdm.training.state.checkpoint_folders import list_checkpoints
from diffusers_mdm.training.state.progress import ALL_STEPS, PlateauState, Progress
from tests.training.loop.run_folders import assert_equal, counters, everything, only_result, options, weights
from tests.training.tiny_run import learning_stage, tiny_recipe


def with_steps(recipe, *steps: int):
    stages = [dataclasses.replace(stage, steps=count) for stage, count in zip(recipe.stages, steps, strict=True)]
    return dataclasses.replace(recipe, stages=tuple(stages))


def copy(finished, output_dir, *steps: int) -> None:
    for step in steps:
        shutil.copytree(finished / f"checkpoint-{step}", output_dir / f"checkpoint-{step}")


def names(output_dir) -> list[str]:
    return sorted(path.name for path in output_dir.iterdir() if "checkpoint-" in path.name)


@pytest.mark.parametrize(
    ("fields", "progress", "over"),
    [
        ({"steps": 4}, {"stage_step": 3}, False),
        ({"steps": 4}, {"stage_step": 4}, True),
        ({"steps": 2}, {"stage_step": 3}, True),
        ({"steps": 4}, {"stage_step": 2, "stage_ended": ALL_STEPS}, False),  # more are asked for
        ({"steps": None, "images": 6, "batch_size": 4}, {"stage_step": 3, "stage_images": 3}, False),
        ({"steps": None, "images": 6, "batch_size": 4}, {"stage_step": 3, "stage_images": 6}, True),
        ({"steps": None, "images": 6, "gradient_accumulation_steps": 9}, {"stage_step": 1, "stage_images": 7}, True),
    ],
)
def test_a_stage_is_over_by_what_the_recipe_asks_now(fields, progress, over):
    stage, progress = learning_stage(**fields), Progress(**progress)
    assert (why_over(stage, progress, progress.last_step(stage)) is not None) == over


@pytest.mark.parametrize("processes", [1, 2, 3])
@pytest.mark.parametrize("batch_size", [1, 4, 5])
def test_images_that_were_seen_count_whatever_batch_and_processes_were(batch_size, processes):
    stage = learning_stage(steps=None, images=100, batch_size=batch_size)
    progress = Progress(stage_step=7, stage_images=42, total_steps=7, total_images=42)
    last = progress.last_step(stage, processes)
    while progress.stage_step < last:
        assert progress.images_of(stage, processes) < 100
        assert progress.last_step(stage, processes) == last
        progress.count_step(stage, processes)
    assert 100 <= progress.images_of(stage, processes) < 100 + batch_size * processes
    assert progress.last_step(stage, processes) == last


def test_a_plateau_that_ended_a_stage_holds_while_the_recipe_has_it():
    plateau = PlateauRecipe(every_steps=2, patience=2)
    stage = learning_stage(steps=100, until_plateau=plateau)
    progress = Progress(stage_step=6, stage_ended="it no longer fell", plateau=PlateauState(without_gain=2))
    assert why_over(stage, progress, 100) == "it no longer fell"
    for patient in (None, dataclasses.replace(plateau, patience=3), dataclasses.replace(plateau, min_steps=50)):
        assert why_over(dataclasses.replace(stage, until_plateau=patient), progress, 100) is None


def test_a_run_past_its_last_step_ends_and_says_so(finished, images_dir, tmp_path, caplog):
    caplog.set_level(logging.INFO)
    copy(finished, tmp_path, 6)
    recipe = with_steps(tiny_recipe(images_dir), 4, 1)
    run_recipe(recipe, only_result(tmp_path, checkpoints_total_limit=1))
    assert names(tmp_path) == ["checkpoint-6"]
    assert "2 while the recipe now has 1" in caplog.text
    assert "2 while the recipe now has 1" in (tmp_path / "README.md").read_text()
    saved = everything(finished / "checkpoint-6")
    assert all(
        (value == saved[f"ema: {part}//{name}"]).all() for part in ("unet",) for name, value in part_of(tmp_path)
    )


def part_of(folder):
    return [(name.removeprefix("unet."), value) for name, value in weights(folder).items() if name.startswith("unet.")]


def test_a_finished_run_that_is_asked_for_more_steps_trains_them(finished, images_dir, tmp_path):
    shutil.copytree(finished, tmp_path, dirs_exist_ok=True)
    run_recipe(with_steps(tiny_recipe(images_dir), 4, 6), only_result(tmp_path))
    last = counters(tmp_path / "checkpoint-10")
    assert (last["finished_steps"], last["stage_step"], last["total_images"]) == ([4], 6, 4 * 4 + 6 * 8)
    assert any((value != dict(part_of(finished))[name]).any() for name, value in part_of(tmp_path))
    assert [stage["steps"] for stage in json.loads((tmp_path / "recipe.json").read_text())["stages"]] == [4, 6]


def test_a_longer_inner_stage_is_trained_from_its_own_checkpoint(finished, images_dir, tmp_path, caplog):
    copy(finished, tmp_path, 4, 8)
    recipe = with_steps(tiny_recipe(images_dir), 5, 4)
    run_recipe(recipe, only_result(tmp_path, checkpoints_total_limit=1))
    assert "Going back to checkpoint-4" in caplog.text
    assert "'inner' had ended after 4 steps" in caplog.text
    assert names(tmp_path) == ["checkpoint-4", "checkpoint-9", "set-aside-checkpoint-8"]
    assert counters(tmp_path / "checkpoint-9")["finished_steps"] == [5]


def test_a_longer_inner_stage_without_its_checkpoint_stays_as_it_is_and_the_recipe_says_so(
    finished, images_dir, tmp_path, caplog
):
    caplog.set_level(logging.INFO)
    copy(finished, tmp_path, 8)
    run_recipe(with_steps(tiny_recipe(images_dir), 5, 5), only_result(tmp_path))
    assert "without effect, because it concerns finished stages: `stages[0].steps` 4 -> 5" in caplog.text
    assert counters(tmp_path / "checkpoint-9")["finished_steps"] == [4]
    assert [stage["steps"] for stage in json.loads((tmp_path / "recipe.json").read_text())["stages"]] == [4, 5]


def test_a_refused_recipe_writes_nothing(finished, images_dir, tmp_path):
    shutil.copytree(finished, tmp_path, dirs_exist_ok=True)
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    for recipe, fields in (
        (dataclasses.replace(tiny_recipe(images_dir), use_ema=False), {}),
        (tiny_recipe(images_dir), {"seed": 1}),
    ):
        with pytest.raises(ValueError, match=r"checkpoint-8 cannot be resumed with these changes.*`(use_ema|seed)`"):
            run_recipe(recipe, options(tmp_path, **fields))
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before


def test_starting_over_keeps_what_it_writes_and_sets_the_rest_aside(finished, images_dir, tmp_path):
    copy(finished, tmp_path, 4, 8)
    fields = {"resume_from_checkpoint": "none", "checkpoints_total_limit": 1}
    run_recipe(with_steps(tiny_recipe(images_dir), 1, 1), only_result(tmp_path, **fields))
    assert names(tmp_path) == ["checkpoint-2", "set-aside-checkpoint-4", "set-aside-checkpoint-8"]
    assert_equal(everything(finished / "checkpoint-8"), everything(tmp_path / "set-aside-checkpoint-8"))


def test_rolling_back_keeps_the_source_and_what_it_writes(finished, images_dir, tmp_path):
    copy(finished, tmp_path, 2, 6, 8)
    fields = {"resume_from_checkpoint": "checkpoint-6", "checkpoints_total_limit": 1}
    run_recipe(tiny_recipe(images_dir), only_result(tmp_path, checkpointing_steps=1, **fields))
    assert names(tmp_path) == ["checkpoint-6", "checkpoint-8", "set-aside-checkpoint-8"]
    assert_equal(everything(finished / "checkpoint-8"), everything(tmp_path / "checkpoint-8"))


def test_samples_that_a_stop_prevented_are_drawn_on_resuming(finished, images_dir, tmp_path):
    copy(finished, tmp_path, 6)
    run_recipe(tiny_recipe(images_dir), options(tmp_path))
    for step in (6, 8):
        name = f"samples/step-{step:07d}.png"
        assert (tmp_path / name).read_bytes() == (finished / name).read_bytes()


def test_a_card_shows_no_images_of_an_earlier_stage(finished, images_dir, tmp_path):
    shutil.copytree(finished, tmp_path, dirs_exist_ok=True)
    (tmp_path / "samples" / "step-0000008.png").unlink()
    recipe = tiny_recipe(images_dir)
    without = dataclasses.replace(recipe, validation=dataclasses.replace(recipe.validation, prompts=()))
    run_recipe(without, options(tmp_path))
    assert not (tmp_path / "samples.png").exists()
    assert "samples.png" not in (tmp_path / "README.md").read_text()


def test_a_full_disk_at_the_end_leaves_the_old_pipeline_and_a_run_that_can_be_finished(
    finished, images_dir, tmp_path, monkeypatch
):
    shutil.copytree(finished, tmp_path, dirs_exist_ok=True)
    recipe = with_steps(tiny_recipe(images_dir), 4, 5)
    save = MDMPipeline.save_pretrained

    def save_half(pipeline, folder, *args, **kwargs) -> None:
        save(pipeline, folder, *args, **kwargs)
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(MDMPipeline, "save_pretrained", save_half)
    with pytest.raises(OSError, match=r"finished pipeline could not be written.*No space left.*finish with"):
        run_recipe(recipe, only_result(tmp_path))
    assert_equal(weights(finished), weights(tmp_path))
    MDMPipeline.from_pretrained(tmp_path)
    monkeypatch.undo()
    run_recipe(recipe, only_result(tmp_path))
    assert list_checkpoints(tmp_path)[-1].name == "checkpoint-9"
    assert any((value != dict(part_of(finished))[name]).any() for name, value in part_of(tmp_path))


def test_what_fails_after_training_costs_nothing_else(finished, images_dir, tmp_path, monkeypatch, caplog):
    copy(finished, tmp_path, 8)
    uploaded = []

    def fail(*_) -> None:
        raise UnicodeEncodeError("utf-8", "\ud83d", 0, 1, "surrogates not allowed")

    monkeypatch.setattr(finish, "write_model_card", fail)
    monkeypatch.setattr(finish, "push_output", uploaded.append)
    assert run_recipe(tiny_recipe(images_dir), only_result(tmp_path)) == tmp_path
    assert len(uploaded) == 1
    assert "failed to write the model card" in caplog.text
