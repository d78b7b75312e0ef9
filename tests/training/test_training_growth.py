# SPDX-License-Identifier: Apache-2.0
import pytest
import torch
from tiny_run import RECIPES

from diffusers_mdm.training.averaging import new_average
from diffusers_mdm.training.engine import build_unet
from diffusers_mdm.training.growth import carry_optimizer_state, grow_ema, grow_model
from diffusers_mdm.training.recipe import load_recipe


@pytest.fixture(scope="module")
def recipe():
    return load_recipe(RECIPES / "tiny.yaml")


def named_adamw(**modules: torch.nn.Module) -> torch.optim.AdamW:
    groups = [{"name": name, "params": list(module.parameters())} for name, module in modules.items()]
    return torch.optim.AdamW(groups, lr=1e-3)


def take_a_step(optimizer: torch.optim.Optimizer) -> None:
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            parameter.grad = torch.randn_like(parameter)
    optimizer.step()


def test_grown_model_begins_with_the_old_one(recipe):
    unet = build_unet(recipe, 1)
    grown = grow_model(unet, recipe.rows[1])
    old, new = list(unet.named_parameters()), list(grown.named_parameters())
    assert grown.num_levels == 2
    assert len(new) > len(old)
    for (old_name, old_value), (new_name, new_value) in zip(old, new, strict=False):
        assert old_name == new_name
        assert torch.equal(old_value, new_value)


def test_averages_of_old_parameters_stay_and_new_ones_join(recipe):
    unet = build_unet(recipe, 1)
    average = new_average(unet, 0.9)
    average.optimization_step = 7
    for shadow in average.shadow_params:
        shadow.normal_()
    before = [shadow.clone() for shadow in average.shadow_params]
    grown = grow_model(unet, recipe.rows[1])
    grow_ema(average, grown)
    parameters = list(grown.parameters())
    assert len(average.shadow_params) == len(parameters)
    assert average.optimization_step == 7
    assert all(torch.equal(old, new) for old, new in zip(before, average.shadow_params, strict=False))
    joined = zip(parameters[len(before) :], average.shadow_params[len(before) :], strict=True)
    assert all(torch.equal(parameter, shadow) for parameter, shadow in joined)
    average.step(parameters)


def test_moments_follow_their_parameters(recipe):
    unet, text = build_unet(recipe, 1), torch.nn.Linear(2, 3)
    old = named_adamw(text_encoder=text, unet=unet)
    take_a_step(old)
    grown = grow_model(unet, recipe.rows[1])
    new = named_adamw(text_encoder=text, unet=grown)
    new.param_groups[0]["lr"] = 0.5
    carry_optimizer_state(old.state_dict(), new)
    assert new.param_groups[0]["lr"] == 0.5
    pairs = [(text, text), *zip(unet.parameters(), grown.parameters(), strict=False)]
    old_parameters = [*text.parameters(), *unet.parameters()]
    new_parameters = [*text.parameters(), *list(grown.parameters())[: len(pairs) - 1]]
    for before, after in zip(old_parameters, new_parameters, strict=True):
        for name in ("exp_avg", "exp_avg_sq", "step"):
            assert torch.equal(old.state[before][name], new.state[after][name])
    assert len(new.state) == len(old_parameters)
    take_a_step(new)


def test_a_module_that_was_not_trained_before_starts_afresh(recipe):
    unet, text = build_unet(recipe, 1), torch.nn.Linear(2, 3)
    old = named_adamw(unet=unet)
    take_a_step(old)
    new = named_adamw(text_encoder=text, unet=unet)
    carry_optimizer_state(old.state_dict(), new)
    assert all(parameter not in new.state for parameter in text.parameters())
    assert all(parameter in new.state for parameter in unet.parameters())
