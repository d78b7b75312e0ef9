# SPDX-License-Identifier: Apache-2.0
"""Whole runs that begin with images and end with clips: growth, resuming, what is saved and drawn."""

import dataclasses
import json
import shutil
from types import SimpleNamespace

import pytest
import torch
from PIL import Image

from diffusers_mdm import MDMVideoPipeline
from diffusers_mdm.training.loop.engine import run_recipe
from diffusers_mdm.training.reports.hub import final_files
from diffusers_mdm.training.state.checkpoint_folders import list_checkpoints
from diffusers_mdm.training.state.history import History
from diffusers_mdm.training.state.run import RunOptions
from tests.training.loop.run_folders import NOTHING_BESIDE, everything
from tests.training.tiny_clips import NUM_FRAMES, video_recipe


def options(output_dir, **fields) -> RunOptions:
    settings = {"report_to": None, "checkpointing_steps": 1, "checkpoints_total_limit": 10, "logging_steps": 1}
    return RunOptions(output_dir=output_dir, **{"validation_steps": 2, **settings, **fields})


@pytest.fixture(scope="module")
def finished(clips_dir, images_dir, tmp_path_factory):
    """Images, clips of one level, clips of two: two steps each."""
    output_dir = tmp_path_factory.mktemp("finished")
    run_recipe(video_recipe(clips_dir, images_dir), options(output_dir))
    return output_dir


def draw(pipeline, **fields) -> torch.Tensor:
    pipeline.set_progress_bar_config(disable=True)
    generator = torch.Generator().manual_seed(0)
    settings = {"num_inference_steps": 2, "generator": generator, "output_type": "pt", **fields}
    return pipeline("red square, slow", **settings).frames


def test_the_saved_pipeline_draws_clips_and_single_frames(finished):
    pipeline = MDMVideoPipeline.from_pretrained(finished)
    assert pipeline.unet.level_frames == (NUM_FRAMES, NUM_FRAMES)
    assert [row.temporal_layers_per_block for row in pipeline.unet.level_configs] == [(0, 1), (0, 1)]
    assert draw(pipeline).shape == (1, NUM_FRAMES, 3, 16, 16)
    assert draw(pipeline, height=8).shape == (1, NUM_FRAMES, 3, 8, 8)
    assert draw(pipeline, num_frames=1).shape == (1, 1, 3, 16, 16)


@pytest.mark.parametrize(
    "step",
    [pytest.param(1, marks=pytest.mark.slow), 2, pytest.param(3, marks=pytest.mark.slow), 4, 5],
    ids=lambda step: f"stopped-after-{step}",
)
def test_resumed_runs_end_bit_for_bit_where_uninterrupted_ones_do(finished, clips_dir, images_dir, tmp_path, step):
    """Before and after images become clips, and before and after these become larger."""
    shutil.copytree(finished / f"checkpoint-{step}", tmp_path / f"checkpoint-{step}")
    run_recipe(video_recipe(clips_dir, images_dir), options(tmp_path, **NOTHING_BESIDE))
    one, other = everything(finished / "checkpoint-6"), everything(tmp_path / "checkpoint-6")
    assert one.keys() == other.keys()
    assert [name for name, value in one.items() if not torch.equal(value, other[name])] == []
    reports = [json.loads((folder / "checkpoint-6" / "progress.json").read_text()) for folder in (finished, tmp_path)]
    assert reports[0]["progress"] == reports[1]["progress"]


def test_stages_train_what_they_say(finished):
    configs = [
        json.loads((checkpoint / "unet" / "config.json").read_text()) for checkpoint in list_checkpoints(finished)
    ]
    frames = [config["num_frames"] or [1] * len(config["block_out_channels"]) for config in configs]
    assert frames == [[1], [1], [8], [8], [8, 8], [8, 8]]
    last = json.loads((finished / "checkpoint-6" / "progress.json").read_text())["progress"]
    # Clips are counted, images beside them are not: 2 steps of 4, of 2 x 2 and of 2.
    assert last["total_images"] == 2 * 4 + 2 * 4 + 2 * 2


def test_losses_of_images_beside_clips_are_reported_apart(finished):
    rows = [row for row in History(finished / "history.jsonl").read() if "settings" not in row]
    assert ["image_loss/level_0" in row for row in rows] == [False, False, True, True, True, True]
    assert all("loss/level_0" in row for row in rows)
    assert all(("image_loss/level_1" in row) == (row["stage"] == "large-clips") for row in rows)
    assert all(row["image_loss/level_0"] != row["loss/level_0"] for row in rows[2:])


def test_samples_show_frames_side_by_side_and_moving(finished):
    stills = sorted((finished / "samples").glob("*.png"))
    assert [path.stem for path in stills] == ["step-0000002", "step-0000004", "step-0000006"]
    assert not stills[0].with_suffix(".webp").exists()  # single images do not move
    sizes = [Image.open(path).size for path in stills]
    assert sizes[1][0] > 4 * sizes[0][0]  # eight columns in place of one
    assert sizes[2][1] > sizes[1][1]
    with Image.open(stills[2].with_suffix(".webp")) as moving:
        assert moving.n_frames == NUM_FRAMES


def test_the_card_shows_how_to_draw_a_clip(finished):
    text = (finished / "README.md").read_text()
    assert "pipeline_tag: text-to-video" in text
    assert "MDMVideoPipeline.from_pretrained" in text
    assert "export_to_video(frames" in text
    assert "8 frames" in text
    assert "| `clips` | 8; clips of 8 frames, with 2 images for every 2 of them |" in text
    assert "samples.webp" in text
    assert (finished / "samples.webp").is_file()


def test_single_frames_of_clips_stand_in_for_images_and_clips_are_held_out(clips_dir, tmp_path):
    recipe = video_recipe(clips_dir, None, steps=1)
    recipe = dataclasses.replace(
        recipe,
        data=dataclasses.replace(recipe.data, validation_split="train", random_flip=True),
        validation=dataclasses.replace(recipe.validation, prompts=(), num_loss_images=3),
        stages=tuple(dataclasses.replace(stage, gradient_accumulation_steps=1) for stage in recipe.stages),
    )
    run_recipe(recipe, options(tmp_path, **NOTHING_BESIDE))
    measured = [row for row in History(tmp_path / "history.jsonl").read() if "validation_loss/level_0" in row]
    assert [row["stage"] for row in measured] == ["pictures", "clips", "large-clips"]
    assert "validation_loss/level_1" in measured[2]


def test_what_is_uploaded_holds_the_moving_samples(finished, clips_dir, images_dir):
    run = SimpleNamespace(recipe=video_recipe(clips_dir, images_dir), options=options(finished))
    assert {"samples.png", "samples.webp", "model_index.json"} <= set(final_files(run))
