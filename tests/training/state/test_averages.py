# SPDX-License-Identifier: Apache-2.0
"""Averages follow their modules through growth, freezing and steps, and are lent without loss."""

import dataclasses

import pytest
import torch

from diffusers_mdm.training.loop.stage_setup import begin_stage
from diffusers_mdm.training.loop.start import start_run
from diffusers_mdm.training.modules.growth import grow_to
from diffusers_mdm.training.state.averages import (
    averaged_weights,
    grow_averages,
    keep_averages,
    lay_out_averages,
    update_averages,
    whole_averages,
)
from diffusers_mdm.training.state.run import Run, RunOptions
from tests.training.tiny_run import tiny_recipe


@pytest.fixture(scope="module")
def started(images_dir, tmp_path_factory) -> Run:
    """In its first stage."""
    run = start_run(tiny_recipe(images_dir), RunOptions(tmp_path_factory.mktemp("averages"), report_to=None))
    begin_stage(run, run.recipe.stages[0])
    return run


@pytest.fixture
def run(started) -> Run:
    """The same, with averages that begin anew, and weights that a test may change."""
    weights = {name: value.clone() for name, value in started.unet.state_dict().items()}
    run = dataclasses.replace(started, ema={})
    lay_out_averages(run, 0.9)
    yield run
    started.unet.load_state_dict(weights)
    started.unet.requires_grad_(True)


def first(run: Run) -> tuple[str, torch.nn.Parameter]:
    return next(iter(run.averaged_parameters("unet").items()))


def test_they_begin_as_copies_of_what_is_trained(run):
    assert run.ema.keys() == run.trained_modules.keys()
    for module, average in run.ema.items():
        for name, value in run.averaged_parameters(module).items():
            assert torch.equal(average.shadows[name], value)
            assert average.shadows[name].data_ptr() != value.data_ptr()


@torch.no_grad()
def test_an_update_moves_them_by_the_share_of_the_warm_up(run):
    name, value = first(run)
    start = value.clone()
    for number, share in enumerate((1.0, 2**-0.75, 3**-0.75), start=1):
        before = run.ema["unet"].shadows[name].clone()
        value.add_(1.0)
        update_averages(run)
        torch.testing.assert_close(run.ema["unet"].shadows[name], before + share * (value - before))
        assert run.ema["unet"].steps == number
    torch.testing.assert_close(value, start + 3)


@torch.no_grad()
def test_a_module_that_is_frozen_as_a_whole_keeps_its_average(run):
    run.unet.requires_grad_(False)
    name, value = first(run)
    value.add_(1.0)
    update_averages(run)
    assert not torch.equal(run.ema["unet"].shadows[name], value)
    assert (run.ema["unet"].steps, run.ema["text_encoder"].steps) == (0, 1)


def test_new_levels_join_as_they_are_and_old_ones_keep_their_averages(run):
    old = {name: shadow.fill_(0.5) for name, shadow in run.ema["unet"].shadows.items()}
    run.unet = grow_to(run.unet, run.recipe.level_configs)
    grow_averages(run)
    shadows, weights = run.ema["unet"].shadows, run.averaged_parameters("unet")
    assert list(shadows) == list(weights)
    assert len(shadows) > len(old)
    for name, shadow in shadows.items():
        assert torch.equal(shadow, old[name] if name in old else weights[name])


def test_weights_are_lent_and_come_back_after_an_error(run):
    name, value = first(run)
    before, own = value.detach().clone(), run.unet.training
    run.ema["unet"].shadows[name].fill_(0.25)
    seen = []

    def draw() -> None:
        with averaged_weights(run):
            seen.append((bool((value == 0.25).all()), run.unet.training))
            raise RuntimeError("no picture")

    with pytest.raises(RuntimeError, match="no picture"):
        draw()
    assert seen == [(True, False)]
    assert torch.equal(value, before)
    assert run.unet.training == own


def test_weights_can_be_given_up_for_the_averages(run):
    name, value = first(run)
    run.ema["unet"].shadows[name].fill_(0.25)
    keep_averages(run)
    assert (value == 0.25).all()


def test_whole_averages_are_copies_on_the_cpu(run):
    name, _ = first(run)
    whole = whole_averages(run)
    assert {module: list(part) for module, part in whole.items()} == {
        module: list(average.shadows) for module, average in run.ema.items()
    }
    assert torch.equal(whole["unet"][name], run.ema["unet"].shadows[name])
    assert {value.device.type for part in whole.values() for value in part.values()} == {"cpu"}


def test_without_averages_nothing_is_lent(run):
    run = dataclasses.replace(run, recipe=dataclasses.replace(run.recipe, use_ema=False), ema={})
    lay_out_averages(run, 0.9)
    update_averages(run)
    assert run.ema == whole_averages(run) == {}
