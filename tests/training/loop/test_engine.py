# SPDX-License-Identifier: Apache-2.0
import dataclasses
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from PIL import Image

from diffusers_mdm import MDMPipeline
from diffusers_mdm.training.loop import step
from diffusers_mdm.training.loop.engine import run_recipe
from diffusers_mdm.training.recipe.stage import PlateauRecipe
from diffusers_mdm.training.state import checkpoints
from diffusers_mdm.training.state.checkpoint_folders import choose_checkpoint, list_checkpoints
from diffusers_mdm.training.state.complete_folders import damage
from diffusers_mdm.training.state.history import History
from tests.training.loop.run_folders import assert_equal, counters, everything, only_result, options, weights
from tests.training.tiny_run import tiny_recipe

HERE = Path(__file__).parents[1]


def test_a_run_saves_checkpoints_samples_and_a_pipeline(finished):
    assert [path.name for path in list_checkpoints(finished)] == [f"checkpoint-{step}" for step in (2, 4, 6, 8)]
    samples = sorted((finished / "samples").glob("*.png"))
    assert len(samples) == 4
    # One row of images per trained level.
    assert Image.open(samples[-1]).height > Image.open(samples[0]).height
    assert (finished / "recipe.json").is_file()
    pipeline = MDMPipeline.from_pretrained(finished)
    assert pipeline.unet.sample_sizes == (8, 16)
    image = pipeline("red line", num_inference_steps=2, generator=torch.Generator().manual_seed(0)).images[0]
    assert image.size == (16, 16)


@pytest.fixture(scope="module", params=[2, 4, 6, 8], ids=lambda step: f"stopped-after-{step}")
def resumed(request, finished, images_dir, tmp_path_factory):
    """The run, resumed within a stage, at the stage boundary, after growth, and when there was nothing left to do."""
    output_dir = tmp_path_factory.mktemp("resumed")
    shutil.copytree(finished / f"checkpoint-{request.param}", output_dir / f"checkpoint-{request.param}")
    # What was logged after the checkpoint is logged again.
    shutil.copy(finished / "history.jsonl", output_dir / "history.jsonl")
    run_recipe(tiny_recipe(images_dir), only_result(output_dir))
    return output_dir


def test_resumed_runs_end_bit_for_bit_where_uninterrupted_ones_do(finished, resumed):
    assert_equal(everything(finished / "checkpoint-8"), everything(resumed / "checkpoint-8"))
    assert counters(finished / "checkpoint-8") == counters(resumed / "checkpoint-8")
    assert_equal(weights(finished), weights(resumed))


def test_saved_components_do_not_name_where_they_were_loaded_from(resumed):
    for config in resumed.rglob("config.json"):
        assert str(resumed) not in config.read_text(), config


def test_the_history_of_a_resumed_run_has_every_step_once(finished, resumed):
    rows, wanted = (
        [row for row in History(folder / "history.jsonl").read() if "loss/level_0" in row]
        for folder in (resumed, finished)
    )
    assert [row["step"] for row in rows] == list(range(1, 9))
    assert [row["loss/level_0"] for row in rows] == [row["loss/level_0"] for row in wanted]


def spoil(checkpoint) -> None:
    file = checkpoint / "unet" / "diffusion_pytorch_model.safetensors"
    os.truncate(file, file.stat().st_size // 2)


def test_damaged_and_unfinished_checkpoints_are_passed_over(finished, images_dir, tmp_path, caplog):
    shutil.copytree(finished / "checkpoint-4", tmp_path / "checkpoint-4")
    shutil.copytree(finished / "checkpoint-6", tmp_path / "checkpoint-6")
    shutil.copytree(finished / "checkpoint-8", tmp_path / ".unfinished-checkpoint-8")
    spoil(tmp_path / "checkpoint-6")
    run_recipe(tiny_recipe(images_dir), only_result(tmp_path))
    assert "checkpoint-6, which is damaged" in caplog.text
    assert not (tmp_path / ".unfinished-checkpoint-8").exists()
    assert_equal(everything(finished / "checkpoint-8"), everything(tmp_path / "checkpoint-8"))


def test_one_can_resume_from_a_named_checkpoint(finished, images_dir, tmp_path):
    run_recipe(tiny_recipe(images_dir), only_result(tmp_path, resume_from_checkpoint=str(finished / "checkpoint-6")))
    assert [path.name for path in list_checkpoints(tmp_path)] == ["checkpoint-8"]
    assert_equal(weights(finished), weights(tmp_path))
    with pytest.raises(ValueError, match=r"no checkpoint 'checkpoint-5'.*checkpoint-8"):
        run_recipe(tiny_recipe(images_dir), options(tmp_path, resume_from_checkpoint="checkpoint-5"))
    spoil(tmp_path / "checkpoint-8")
    with pytest.raises(ValueError, match="damaged"):
        run_recipe(tiny_recipe(images_dir), options(tmp_path, resume_from_checkpoint="checkpoint-8"))


def test_checkpoints_of_another_model_are_refused(finished, images_dir, tmp_path):
    shutil.copytree(finished / "checkpoint-6", tmp_path / "checkpoint-6")
    recipe = tiny_recipe(images_dir)
    other = dataclasses.replace(recipe, model={**recipe.model, "time_embed_dim": 64})
    with pytest.raises(ValueError, match=r"`model\.time_embed_dim` 32 -> 64"):
        run_recipe(other, options(tmp_path))


def test_old_checkpoints_make_room(images_dir, tmp_path):
    fields = {"checkpointing_steps": 1, "checkpoints_total_limit": 2, "max_train_steps": 2}
    run_recipe(tiny_recipe(images_dir), only_result(tmp_path, **fields))
    assert [path.name for path in list_checkpoints(tmp_path)] == ["checkpoint-3", "checkpoint-4"]


def test_half_precision_is_saved_when_asked(finished, images_dir, tmp_path):
    shutil.copytree(finished / "checkpoint-8", tmp_path / "checkpoint-8")
    run_recipe(tiny_recipe(images_dir), only_result(tmp_path, save_dtype="fp16"))
    exact = weights(finished)
    for name, value in weights(tmp_path).items():
        assert value.dtype == torch.float16
        assert torch.equal(value, exact[name].half())
    pipeline = MDMPipeline.from_pretrained(tmp_path)
    assert pipeline("red line", num_inference_steps=1, output_type="np").images.shape == (1, 16, 16, 3)


def test_max_train_steps_limits_every_stage(images_dir, tmp_path):
    run_recipe(tiny_recipe(images_dir), only_result(tmp_path, max_train_steps=1))
    assert [path.name for path in list_checkpoints(tmp_path)] == ["checkpoint-1", "checkpoint-2"]


def test_a_full_disk_costs_a_checkpoint_but_not_the_run(finished, images_dir, tmp_path, monkeypatch, caplog):
    written = checkpoints.save_file

    def save_file_unless_full(tensors, path, *args):
        if "checkpoint-2" in str(path):
            raise OSError(28, "No space left on device")
        written(tensors, path, *args)

    monkeypatch.setattr(checkpoints, "save_file", save_file_unless_full)
    run_recipe(tiny_recipe(images_dir), only_result(tmp_path, checkpointing_steps=2))
    assert "No checkpoint at step 2, training continues" in caplog.text
    assert [path.name for path in list_checkpoints(tmp_path)] == [f"checkpoint-{step}" for step in (4, 6, 8)]
    assert not list(tmp_path.glob(".unfinished*"))
    assert_equal(weights(finished), weights(tmp_path))


def test_too_many_bad_steps_end_with_a_checkpoint(images_dir, tmp_path, monkeypatch):
    monkeypatch.setattr(step, "gradients_are_finite", lambda norm: False)
    recipe = tiny_recipe(images_dir)
    with pytest.raises(FloatingPointError, match="2 consecutive steps"):
        run_recipe(recipe, options(tmp_path, max_skipped_steps=2, checkpointing_steps=100))
    (saved,) = list_checkpoints(tmp_path)
    assert counters(saved)["skipped_in_a_row"] == 2


def growing_recipe(images_dir):
    """Stages that end when the validation loss of their outermost level no longer falls by 90 %: at once."""
    plateau = PlateauRecipe(every_steps=1, patience=2, min_gain=0.9, smoothing=0.0)
    recipe = tiny_recipe(images_dir)
    stages = tuple(dataclasses.replace(stage, until_plateau=plateau, steps=40) for stage in recipe.stages)
    data = dataclasses.replace(recipe.data, validation_split="train")
    return dataclasses.replace(recipe, data=data, stages=stages)


@pytest.fixture(scope="module")
def grown(images_dir, tmp_path_factory):
    output_dir = tmp_path_factory.mktemp("grown")
    run_recipe(growing_recipe(images_dir), only_result(output_dir, checkpointing_steps=1))
    return output_dir


def test_stages_end_when_the_validation_loss_stops_falling(grown):
    rows = History(grown / "history.jsonl").read()
    measured = [row for row in rows if "validation_loss/level_0" in row]
    # The first measurement is the best one; two more without gain end the stage.
    assert [row["step"] for row in measured] == [1, 2, 3, 4, 5, 6]
    assert all(("validation_loss/level_1" in row) == (row["stage"] == "outer") for row in measured)
    last = counters(list_checkpoints(grown)[-1])
    assert "validation loss of level 1" in last["stage_ended"]
    assert "validation loss of level 0" in last["stage_ends"][0]


@pytest.mark.parametrize("step", [2, pytest.param(3, marks=pytest.mark.slow), 5])
def test_a_plateau_is_remembered_across_a_restart(grown, images_dir, tmp_path, step):
    shutil.copytree(grown / f"checkpoint-{step}", tmp_path / f"checkpoint-{step}")
    run_recipe(growing_recipe(images_dir), only_result(tmp_path))
    assert_equal(everything(grown / "checkpoint-6"), everything(tmp_path / "checkpoint-6"))
    assert counters(grown / "checkpoint-6") == counters(tmp_path / "checkpoint-6")


def start_in_process(images_dir, output_dir, *extra: str) -> subprocess.Popen:
    stage_fields = {"steps": 4000, "batch_fractions": None}
    option_fields = {"checkpointing_steps": 3, "checkpoints_total_limit": 3, "max_train_steps": None}
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join([str(HERE.parents[1]), str(HERE)]),
        "OMP_NUM_THREADS": "1",
    }
    command = [sys.executable, str(HERE / "train_in_processes.py"), str(images_dir), str(output_dir)]
    return subprocess.Popen(
        [*command, json.dumps(stage_fields), json.dumps(option_fields)],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def wait_for_checkpoint(output_dir, process, seconds=240) -> None:
    until = time.monotonic() + seconds
    while not list_checkpoints(output_dir):
        assert process.poll() is None, process.stdout.read()
        assert time.monotonic() < until
        time.sleep(0.05)


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_saves_and_ends_well(images_dir, tmp_path, number):
    process = start_in_process(images_dir, tmp_path)
    wait_for_checkpoint(tmp_path, process)
    process.send_signal(number)
    output = process.communicate()[0]
    assert process.returncode == 0, output
    newest = list_checkpoints(tmp_path)[-1]
    assert f"Stopped by {number.name} after step {newest.name.removeprefix('checkpoint-')}; resume with" in output
    assert damage(newest) is None


@pytest.mark.slow
def test_a_killed_run_goes_on_from_its_last_checkpoint(images_dir, tmp_path):
    """At any moment, many of them in the middle of a write: what has its name is sound."""
    for pause in (0.0, 0.03, 0.11):
        process = start_in_process(images_dir, tmp_path)
        before = len(list_checkpoints(tmp_path))
        wait_for_checkpoint(tmp_path, process) if not before else time.sleep(8)
        time.sleep(pause)
        process.kill()
        process.communicate()
        assert all(damage(checkpoint) is None for checkpoint in list_checkpoints(tmp_path))
    assert choose_checkpoint(tmp_path, "latest") == list_checkpoints(tmp_path)[-1]
