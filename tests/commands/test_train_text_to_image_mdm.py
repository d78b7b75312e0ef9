# SPDX-License-Identifier: Apache-2.0
"""The training and the evaluation command, as a user types them."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from diffusers_mdm import MDMPipeline

ROOT = Path(__file__).parents[2]


def run(script: str, *arguments: object) -> subprocess.CompletedProcess:
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, str(ROOT / "training" / script), *map(str, arguments)]
    return subprocess.run(command, env=environment, capture_output=True, text=True, check=False)


@pytest.mark.slow
def test_tiny_recipe_from_dry_run_to_scores(tmp_path):
    recipe = ["--recipe", ROOT / "training" / "recipes" / "tiny.yaml", "--output_dir", tmp_path / "model"]
    dry = run("train_text_to_image_mdm.py", *recipe, "--dry_run", "--max_train_steps", 1)
    assert dry.returncode == 0, dry.stderr
    assert "stage inner: levels 0-0, 8 pixels, 1 steps" in dry.stdout
    assert not (tmp_path / "model").exists()

    trained = run("train_text_to_image_mdm.py", *recipe, "--max_train_steps", 1, "--save_dtype", "fp16")
    assert trained.returncode == 0, trained.stderr
    assert MDMPipeline.from_pretrained(tmp_path / "model").unet.num_levels == 2
    assert list((tmp_path / "model" / "logs").rglob("events.out.tfevents.*"))

    scores = tmp_path / "scores.json"
    evaluated = run(
        "evaluate_emoji_model.py",
        *("--model_dir", tmp_path / "model", "--num_seen", 2, "--groups", "seen"),
        *("--num_inference_steps", 1, "--output", scores),
    )
    assert evaluated.returncode == 0, evaluated.stderr
    assert json.loads(scores.read_text())["scores"]["seen"]["num_drawn"] == 2


@pytest.mark.slow
def test_a_mistake_in_a_recipe_is_one_line_that_names_it(tmp_path):
    recipe = tmp_path / "mine.yaml"
    text = (ROOT / "training" / "recipes" / "tiny.yaml").read_text()
    recipe.write_text(text.replace("batch_size: 4", "batch_sise: 4", 1))
    failed = run("train_text_to_image_mdm.py", "--recipe", recipe, "--output_dir", tmp_path / "model")
    assert failed.returncode == 2
    assert "mine.yaml" in failed.stderr
    assert "stages[0].batch_sise" in failed.stderr
    assert "Traceback" not in failed.stderr
    assert failed.stderr.count("\n") == 1


@pytest.mark.slow
def test_a_signal_saves_and_says_how_to_go_on(tmp_path):
    script, output_dir = ROOT / "training" / "train_text_to_image_mdm.py", tmp_path / "model"
    words = ["--recipe", ROOT / "training" / "recipes" / "tiny.yaml", "--output_dir", output_dir]
    words += ["--lr_scheduler", "constant", "--num_train_epochs", 1000, "--max_train_samples", 64]
    words += ["--checkpointing_steps", 3, "--report_to", "none", "--hub_token", "hf_secret"]
    command = [sys.executable, str(script), *map(str, words)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(
        command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True
    )
    until = time.monotonic() + 240
    while not list(output_dir.glob("checkpoint-*")):
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < until
        time.sleep(0.05)
    process.send_signal(signal.SIGTERM)
    printed, errors = process.communicate()
    assert process.returncode == 0, errors
    assert "Stopped by SIGTERM" in printed
    assert printed.strip().endswith(f"resume with {' '.join(command[:-2])}")
    assert "hf_secret" not in printed + errors
