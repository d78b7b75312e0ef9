# SPDX-License-Identifier: Apache-2.0
"""The training command of clips, as a user types it."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from diffusers_mdm import MDMVideoPipeline

ROOT = Path(__file__).parents[2]
RECIPES = ROOT / "training" / "recipes"


def run(*arguments: object, script: str = "train_text_to_video_mdm.py") -> subprocess.CompletedProcess:
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, str(ROOT / "training" / script), *map(str, arguments)]
    return subprocess.run(command, env=environment, capture_output=True, text=True, check=False)


@pytest.mark.slow
def test_the_tiny_recipe_trains_on_the_shipped_clips(tmp_path):
    trained = run("--recipe", RECIPES / "tiny_video.yaml", "--output_dir", tmp_path / "tiny", "--report_to", "none")
    assert trained.returncode == 0, trained.stderr
    assert MDMVideoPipeline.from_pretrained(tmp_path / "tiny").unet.level_frames == (8, 8)
    assert (tmp_path / "tiny" / "samples.webp").is_file()

    words = ["--model_dir", tmp_path / "tiny", "--num_seen", 2, "--num_inference_steps", 1]
    evaluated = run(*words, "--output", tmp_path / "scores.json", script="evaluate_emoji_clips.py")
    assert evaluated.returncode == 0, evaluated.stderr
    assert "2 clips generated: the nearest of 668 clips in the data set" in evaluated.stdout
    assert json.loads((tmp_path / "scores.json").read_text())["num_drawn"] == 2
    wrong = run(*words, "--height", 13, script="evaluate_emoji_clips.py")
    assert "--height 13 is not the side of a level; this model has 8, 16." in wrong.stderr


@pytest.mark.slow
def test_a_recipe_of_images_is_refused_in_one_line(tmp_path):
    failed = run("--recipe", RECIPES / "tiny.yaml", "--output_dir", tmp_path / "model")
    assert failed.returncode == 2
    assert "'tiny' is for an image model" in failed.stderr
    assert failed.stderr.count("\n") == 1
