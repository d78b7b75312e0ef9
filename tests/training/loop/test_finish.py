# SPDX-License-Identifier: Apache-2.0
"""What a run leaves is the pipeline with averaged weights, whole, or what was there before."""

import dataclasses
import json
import logging
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from diffusers_mdm import MDMPipeline
from diffusers_mdm.training.loop.finish import report_result, save_pipeline
from diffusers_mdm.training.loop.stage_setup import begin_stage
from diffusers_mdm.training.loop.start import start_run
from diffusers_mdm.training.state.run import Run, RunOptions
from tests.training.tiny_run import tiny_recipe


@pytest.fixture
def run(images_dir, tmp_path) -> Run:
    """In its first stage, with averages unlike its weights."""
    run = start_run(tiny_recipe(images_dir), RunOptions(tmp_path / "out", report_to=None, save_dtype="fp16"))
    begin_stage(run, run.recipe.stages[0])
    for average in run.ema.values():
        average.shadows = {name: torch.randn_like(value) for name, value in average.shadows.items()}
    return run


def test_the_averages_are_saved_in_the_wanted_precision(run):
    averages = {name: value.clone() for name, value in run.ema["unet"].shadows.items()}
    folder = save_pipeline(run)
    saved = load_file(folder / "unet" / "diffusion_pytorch_model.safetensors")
    assert {value.dtype for value in saved.values()} == {torch.float16}
    assert saved.keys() == averages.keys()
    assert all(torch.equal(value, averages[name].half()) for name, value in saved.items())
    pipeline = MDMPipeline.from_pretrained(folder)
    assert pipeline.unet.num_levels == 1
    assert not any("name_or_path" in json.loads(file.read_text()) for file in folder.glob("*/config.json"))


def test_what_cannot_be_written_leaves_what_was_there(run, tmp_path):
    blocked = tmp_path / "blocked"
    blocked.write_text("a file in the place of a folder")
    run.options = dataclasses.replace(run.options, output_dir=blocked, resume_command="the same words")
    with pytest.raises(OSError, match=r"could not be written to .*blocked.*finish with the same words"):
        save_pipeline(run)
    assert blocked.read_text() == "a file in the place of a folder"


def test_a_card_that_cannot_be_written_costs_nothing_else(run, caplog, tmp_path):
    folder = Path(run.options.output_dir)
    folder.mkdir()
    (folder / "README.md").mkdir()  # where the card belongs
    with caplog.at_level(logging.ERROR):
        report_result(run)
    assert "card" in caplog.text
