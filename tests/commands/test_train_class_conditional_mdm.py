# SPDX-License-Identifier: Apache-2.0
"""The training command of classes, as a user types it."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from diffusers_mdm import MDMClassConditionalPipeline

ROOT = Path(__file__).parents[2]
RECIPES = ROOT / "training" / "recipes"


def run(*arguments: object, script: str = "train_class_conditional_mdm.py") -> subprocess.CompletedProcess:
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, str(ROOT / "training" / script), *map(str, arguments)]
    return subprocess.run(command, env=environment, capture_output=True, text=True, check=False)


@pytest.mark.slow
def test_the_styles_are_trained_then_fine_tuned(tmp_path):
    quick = ["--max_train_steps", 1, "--train_batch_size", 2, "--max_train_samples", 16, "--report_to", "none"]
    trained = run("--recipe", RECIPES / "emoji_styles_class.yaml", "--output_dir", tmp_path / "styles", *quick)
    assert trained.returncode == 0, trained.stderr
    styles = MDMClassConditionalPipeline.from_pretrained(tmp_path / "styles")
    assert list(styles.labels) == ["fluent-3d", "fluent-flat", "noto", "twemoji"]
    assert (tmp_path / "styles" / "samples.png").is_file()

    words = ["--model_dir", tmp_path / "styles", "--label_column", "style", "--num_per_class", 1]
    words += ["--num_inference_steps", 1, "--output", tmp_path / "scores.json"]
    evaluated = run(*words, script="evaluate_emoji_classes.py")
    assert evaluated.returncode == 0, evaluated.stderr
    assert "4 classes, 1 images each: the nearest of 6836 images" in evaluated.stdout
    assert set(json.loads((tmp_path / "scores.json").read_text())["classes"]) == set(styles.labels)

    words = ["--pretrained_model_name_or_path", tmp_path / "styles", "--label_column", "style", "--rank", 2]
    words += ["--train_data_dir", ROOT / "training" / "data" / "emoji-styles-64", "--validation_prompts", "noto", 0]
    adapted = run(*words, "--output_dir", tmp_path / "lora", *quick)
    assert adapted.returncode == 0, adapted.stderr
    styles.load_lora_weights(tmp_path / "lora")
    assert styles.get_active_adapters()


@pytest.mark.slow
def test_a_recipe_of_captions_is_refused_in_one_line(tmp_path):
    failed = run("--recipe", RECIPES / "tiny.yaml", "--output_dir", tmp_path / "model")
    assert failed.returncode == 2
    assert "'tiny' has no classes" in failed.stderr
    assert failed.stderr.count("\n") == 1
