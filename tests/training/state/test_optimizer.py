# SPDX-License-Identifier: Apache-2.0
"""The optimizer's groups, rates and state: every trained parameter once, each at its pace, its moments by name."""

import dataclasses

import pytest
import torch

from diffusers_mdm.training.loop.start import build_unet
from diffusers_mdm.training.modules.conditioned_unet import ConditionedUNet
from diffusers_mdm.training.modules.growth import grow_model
from diffusers_mdm.training.modules.text_encoder import build_text_encoder
from diffusers_mdm.training.optimizers.registry import new_optimizer
from diffusers_mdm.training.recipe.loading import load_recipe
from diffusers_mdm.training.recipe.recipe import OptimizerRecipe
from diffusers_mdm.training.recipe.text_encoder import TextEncoderRecipe
from diffusers_mdm.training.state.optimizer import (
    learning_rate_factor,
    parameter_groups,
    take_optimizer_state,
    whole_optimizer_state,
)
from diffusers_mdm.training.state.progress import Progress
from tests.training.tiny_run import RECIPES, learning_stage


@pytest.fixture(scope="module")
def recipe():
    return load_recipe(RECIPES / "tiny.yaml")


@pytest.fixture
def model(recipe):
    encoder, tokenizer = build_text_encoder(recipe.text_encoder, ["red line", "blue ellipse"])
    return ConditionedUNet(build_unet(recipe, 2), encoder, tokenizer)


def test_every_trained_parameter_is_in_one_group(model, recipe):
    groups = parameter_groups(model, recipe.stages[1], recipe.text_encoder)
    grouped = [parameter for group in groups for parameter in group["params"]]
    assert len(grouped) == len({id(parameter) for parameter in grouped})
    assert {id(parameter) for parameter in grouped} == {id(parameter) for parameter in model.parameters()}
    assert [group["name"] for group in groups] == [
        "text_encoder.tokens",
        "text_encoder",
        "unet",
        "unet.levels.0",
        "unet.levels.1",
    ]


def test_groups_have_their_own_rates(model, recipe):
    stage = dataclasses.replace(recipe.stages[1], level_learning_rate_scales=(0.1, 2.0))
    encoder = dataclasses.replace(recipe.text_encoder, learning_rate_scale=0.5, token_learning_rate_scale=20.0)
    scales = {group["name"]: group["lr_scale"] for group in parameter_groups(model, stage, encoder)}
    assert scales == {
        "text_encoder.tokens": 10.0,
        "text_encoder": 0.5,
        "unet": 1.0,
        "unet.levels.0": 0.1,
        "unet.levels.1": 2.0,
    }


def test_what_does_not_learn_is_left_out(model, recipe):
    model.text_encoder.requires_grad_(False)
    model.unet.levels[0].requires_grad_(False)
    names = [group["name"] for group in parameter_groups(model, recipe.stages[1], recipe.text_encoder)]
    assert names == ["unet", "unet.levels.1"]


@pytest.mark.parametrize("field", ["token_learning_rate_scale", "initializer_factor", "learning_rate_scale"])
def test_scales_are_not_negative(field):
    with pytest.raises(ValueError, match=field):
        TextEncoderRecipe(pretrained="encoder", **{field: -1.0})


def trained(unet, steps: int) -> torch.optim.Optimizer:
    groups = [{"name": "unet", "params": list(unet.parameters())}]
    optimizer = new_optimizer(unet, groups, OptimizerRecipe(), 1e-3)
    for _ in range(steps):
        for parameter in unet.parameters():
            parameter.grad = torch.randn_like(parameter)
        optimizer.step()
    return optimizer


def test_moments_follow_their_parameters_through_growth(recipe):
    unet = build_unet(recipe, 1)
    old = trained(unet, 2)
    state = whole_optimizer_state(old, unet.named_parameters())
    grown = grow_model(unet, recipe.level_configs[1])
    new = trained(grown, 0)
    new.param_groups[0]["lr"] = 0.5
    take_optimizer_state(new, grown.named_parameters(), state)
    assert new.param_groups[0]["lr"] == 0.5
    pairs = list(zip(unet.parameters(), grown.parameters(), strict=False))
    for before, after in pairs:
        for entry in ("exp_avg", "exp_avg_sq", "step"):
            assert torch.equal(old.state[before][entry], new.state[after][entry])
    assert len(new.state) == len(pairs)  # the new level starts afresh
    assert whole_optimizer_state(new, grown.named_parameters()).keys() == state.keys()


def test_a_restored_optimizer_steps_as_the_old_one(recipe):
    unet = build_unet(recipe, 1)
    old = trained(unet, 3)
    copy = build_unet(recipe, 1)
    copy.load_state_dict(unet.state_dict())
    new = trained(copy, 0)
    take_optimizer_state(new, copy.named_parameters(), whole_optimizer_state(old, unet.named_parameters()))
    for one, other in zip(unet.parameters(), copy.parameters(), strict=True):
        one.grad = torch.ones_like(one)
        other.grad = torch.ones_like(other)
    old.step()
    new.step()
    assert all(torch.equal(one, other) for one, other in zip(unet.parameters(), copy.parameters(), strict=True))


def test_learning_rate_warms_up_and_falls():
    stage = learning_stage(steps=110, lr_warmup_steps=10, lr_scheduler="cosine")
    factors = [learning_rate_factor(stage, step, 110) for step in range(110)]
    assert factors[0] == 0.1
    assert factors[9] == factors[10] == 1.0
    assert factors[60] == pytest.approx(0.5)
    assert 0 < factors[-1] < 0.001
    assert learning_rate_factor(dataclasses.replace(stage, lr_scheduler="linear"), 60, 110) == pytest.approx(0.5)
    assert learning_rate_factor(dataclasses.replace(stage, lr_scheduler="constant_with_warmup"), 100, 110) == 1.0
    quadratic = dataclasses.replace(stage, lr_scheduler="polynomial", lr_power=2.0)
    assert learning_rate_factor(quadratic, 60, 110) == pytest.approx(0.25)
    restarts = dataclasses.replace(stage, lr_scheduler="cosine_with_restarts", lr_num_cycles=2)
    assert learning_rate_factor(restarts, 60, 110) == 1.0
    assert learning_rate_factor(restarts, 35, 110) == pytest.approx(0.5)


def test_the_schedule_ends_with_the_stage_whatever_the_number_of_processes():
    stage = learning_stage(steps=None, images=80, batch_size=4, lr_scheduler="linear", lr_warmup_steps=0)
    for num_processes in (1, 2):
        last = Progress().last_step(stage, num_processes)
        assert learning_rate_factor(stage, last // 2, last) == pytest.approx(0.5)
