# SPDX-License-Identifier: Apache-2.0
"""The first thing anyone tries: fine-tuning the shipped models, whose configs were saved by an older version."""

import dataclasses
from pathlib import Path

import pytest
from PIL import Image

from diffusers_mdm.schedulers.predictions import level_predictions
from diffusers_mdm.training.commands.dry_run import describe_run
from diffusers_mdm.training.commands.flags import read_command
from diffusers_mdm.training.commands.kinds import CLASS_CONDITIONAL, TEXT_TO_IMAGE, TEXT_TO_VIDEO
from diffusers_mdm.training.loop.engine import resolve_recipe, run_recipe

ROOT = Path(__file__).parents[2]
IMAGES = ROOT / "training" / "data" / "emoji-styles-64"
CLIPS = ROOT / "training" / "data" / "emoji-clips-64"
RUNS = {
    "images": (TEXT_TO_IMAGE, "mdm-emoji-64", ["--train_data_dir", IMAGES]),
    "adapters": (TEXT_TO_IMAGE, "mdm-emoji-64", ["--train_data_dir", IMAGES, "--rank", 2]),
    "subject": (TEXT_TO_IMAGE, "mdm-emoji-64", ["--instance_data_dir", "SUBJECT", "--instance_prompt", "a sks frog"]),
    "frames": (TEXT_TO_VIDEO, "mdm-emoji-64", ["--train_data_dir", CLIPS, "--num_frames", 8]),
    "classes": (
        CLASS_CONDITIONAL,
        "mdm-emoji-classes-64",
        ["--train_data_dir", IMAGES, "--label_column", "subgroup"],
    ),
    "clips": (TEXT_TO_VIDEO, "mdm-emoji-clips-64", ["--train_data_dir", CLIPS]),
}


def read(name: str, folder: Path) -> tuple:
    """The recipe and the options of a command of two images and one step."""
    kind, model, words = RUNS[name]
    subject = folder / "subject"
    subject.mkdir(exist_ok=True)
    for number in range(2):
        Image.new("RGB", (64, 64), (number * 90, 120, 30)).save(subject / f"{number}.png")
    start = ["--pretrained_model_name_or_path", ROOT / "model_cards" / model, "--output_dir", folder / "out"]
    start += ["--max_train_steps", 1, "--train_batch_size", 2, "--report_to", "none", "--num_validation_images", 0]
    words = [subject if word == "SUBJECT" else word for word in words]
    recipe, options, _ = read_command(list(map(str, (*start, *words))), kind)
    return resolve_recipe(recipe, options), options


@pytest.mark.parametrize("name", RUNS)
def test_its_recipe_follows_from_what_was_saved(name, tmp_path):
    recipe, _ = read(name, tmp_path)
    assert recipe.pretrained is not None
    assert recipe.stages[0].levels == len(recipe.level_configs) == 2


SLOW = [pytest.param(name, marks=pytest.mark.slow) for name in RUNS if name != "images"]


@pytest.mark.parametrize("name", ["images", *SLOW])
def test_a_dry_run_describes_it(name, tmp_path):
    recipe, options = read(name, tmp_path)
    # The outer levels are the same again; the inner one is quick to count.
    stage = dataclasses.replace(recipe.stages[0], levels=1)
    first = {"prediction_type": level_predictions(recipe.scheduler.get("prediction_type", "v_prediction"), 2)[0]}
    smaller = dataclasses.replace(
        recipe, levels=recipe.levels[:1], stages=(stage,), scheduler={**recipe.scheduler, **first}
    )
    described = describe_run(smaller, options)
    assert "starts from" in described
    assert "memory a process" in described
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
@pytest.mark.parametrize("name", RUNS)
def test_a_step_is_trained_and_saved(name, tmp_path):
    recipe, options = read(name, tmp_path)
    output_dir = run_recipe(recipe, options)
    saved = "pytorch_lora_weights.safetensors" if name == "adapters" else "model_index.json"
    assert (output_dir / saved).is_file()
    assert (output_dir / "README.md").is_file()
