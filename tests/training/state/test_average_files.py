# SPDX-License-Identifier: Apache-2.0
"""Averages are saved as diffusers saves them, and read again from there and from older checkpoints."""

import dataclasses
from pathlib import Path

import pytest
import torch
from diffusers.training_utils import EMAModel
from safetensors.torch import load_file, save_file

from diffusers_mdm import NestedUNetModel
from diffusers_mdm.training.loop.stage_setup import begin_stage
from diffusers_mdm.training.loop.start import start_run
from diffusers_mdm.training.state.average_files import (
    EMA_FILE,
    average_folder,
    averaged_state,
    load_averages,
    save_averages,
)
from diffusers_mdm.training.state.averages import whole_averages
from diffusers_mdm.training.state.checkpoint_report import CheckpointReport
from diffusers_mdm.training.state.progress import Progress
from diffusers_mdm.training.state.run import Run, RunOptions
from tests.training.tiny_run import tiny_recipe, write_images

STEPS = 7


@pytest.fixture(scope="module")
def started(tmp_path_factory) -> Run:
    """In its first stage, with averages unlike the weights."""
    folder = tmp_path_factory.mktemp("averages")
    run = start_run(tiny_recipe(write_images(folder / "pictures")), RunOptions(folder / "run", report_to=None))
    begin_stage(run, run.recipe.stages[0])
    for average in run.ema.values():
        average.shadows = {name: torch.randn_like(value) for name, value in average.shadows.items()}
        average.steps = STEPS
    return run


@pytest.fixture
def run(started) -> Run:
    """The same, in a state that a test may change."""
    return dataclasses.replace(started, ema=dict(started.ema))


@pytest.fixture
def checkpoint(run, tmp_path) -> Path:
    save_averages(run, run.trained_modules, whole_averages(run), tmp_path)
    return tmp_path


def report_of(run: Run) -> CheckpointReport:
    return CheckpointReport(Progress(), dict.fromkeys(run.trained_modules, STEPS), None, 1, {})


def assert_equal(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> None:
    assert one.keys() == other.keys()
    assert all(torch.equal(value, other[name]) for name, value in one.items())


def test_diffusers_reads_them(run, checkpoint):
    average = run.ema["unet"]
    read = EMAModel.from_pretrained(checkpoint / "unet_ema", NestedUNetModel)
    assert_equal(dict(zip(average.shadows, read.shadow_params, strict=True)), average.shadows)
    assert (read.optimization_step, read.decay) == (STEPS, average.decay)
    assert read.get_decay(read.optimization_step) == pytest.approx(average.decay_now)
    unet = NestedUNetModel.from_pretrained(checkpoint, subfolder="unet_ema")
    assert_equal({name: value.detach() for name, value in unet.named_parameters()}, average.shadows)
    encoder = type(run.text_encoder).from_pretrained(checkpoint / "text_encoder_ema")
    shadows = run.ema["text_encoder"].shadows
    assert_equal({name: value.detach() for name, value in encoder.named_parameters()}, shadows)


def test_they_are_read_as_they_were(run, checkpoint):
    before, run.ema = run.ema, {}
    load_averages(run, checkpoint, report_of(run))
    assert run.ema.keys() == before.keys() == {"unet", "text_encoder"}
    for name, average in before.items():
        assert_equal(run.ema[name].shadows, average.shadows)
        assert run.ema[name].steps == STEPS


def test_those_of_older_checkpoints_are_in_one_file(run, tmp_path):
    whole = whole_averages(run)
    named = {f"{module}//{name}": value for module in whole for name, value in whole[module].items()}
    before, run.ema = run.ema, {}
    save_file(named, tmp_path / EMA_FILE)
    load_averages(run, tmp_path, report_of(run))
    for name, average in before.items():
        assert_equal(run.ema[name].shadows, average.shadows)


def test_saving_draws_no_random_numbers_and_changes_no_weights(run, tmp_path):
    weights = {name: value.clone() for name, value in run.unet.state_dict().items()}
    state = torch.get_rng_state()
    save_averages(run, run.trained_modules, whole_averages(run), tmp_path)
    assert torch.equal(torch.get_rng_state(), state)
    assert_equal(dict(run.unet.state_dict()), weights)
    assert "decay" not in run.unet.config


def test_averages_of_another_model_are_refused(run, checkpoint):
    file = next(average_folder(checkpoint, "unet").glob("*.safetensors"))
    found = load_file(file)
    name = sorted(found)[0]
    save_file({**found, name: torch.zeros(3, 5)}, file)
    with pytest.raises(ValueError, match=rf"unet_ema does not fit the weights beside it: {name} differs"):
        load_averages(run, checkpoint, report_of(run))


def test_tied_weights_have_one_average():
    module = torch.nn.Sequential(torch.nn.Linear(2, 2, bias=False), torch.nn.Linear(2, 2, bias=False))
    module[1].weight = module[0].weight
    state = averaged_state(module, {"0.weight": torch.ones(2, 2)})
    assert state["0.weight"] is state["1.weight"]
