# SPDX-License-Identifier: Apache-2.0
"""Prodigy: its estimate is one for all parameters, and is saved with the state."""

import pytest
import torch

from diffusers_mdm.training.optimizers.registry import FAMILIES, new_optimizer
from diffusers_mdm.training.recipe.optimizer import OptimizerRecipe
from diffusers_mdm.training.state.optimizer import take_optimizer_state, whole_optimizer_state

pytest.importorskip("prodigyopt")
PRODIGY = FAMILIES["prodigy"]


def learn(num_steps: int) -> tuple[torch.nn.Module, torch.optim.Optimizer]:
    """Move the weights of a layer towards 3."""
    torch.manual_seed(0)
    model = torch.nn.Linear(6, 5)
    groups = [{"params": [model.weight]}, {"params": [model.bias]}]
    recipe = OptimizerRecipe(name="prodigy", prodigy_safeguard_warmup=False, adam_weight_decay=1e-4)
    optimizer = new_optimizer(model, groups, recipe, 1.0)
    for _ in range(num_steps):
        for parameter in model.parameters():
            parameter.grad = parameter.detach() - 3
        optimizer.step()
    return model, optimizer


def test_it_finds_its_step_size(capsys):
    model, optimizer = learn(300)
    assert optimizer.param_groups[0]["d"] > 1e-3  # it starts at 1e-6
    assert (model.weight - 3).abs().max() < 0.5
    assert capsys.readouterr().out == ""


def test_the_estimate_is_carried_over():
    model, optimizer = learn(30)
    state = whole_optimizer_state(optimizer, model.named_parameters(), PRODIGY.shared)
    other, fresh = learn(0)
    assert fresh.param_groups[1]["d"] != optimizer.param_groups[1]["d"]
    take_optimizer_state(fresh, other.named_parameters(), state)
    for group in fresh.param_groups:
        assert {key: group[key] for key in PRODIGY.shared} == {
            key: optimizer.param_groups[0][key] for key in PRODIGY.shared
        }
        assert type(group["k"]) is int


def test_settings_are_passed_on():
    recipe = OptimizerRecipe(name="prodigy", prodigy_beta3=0.9, prodigy_use_bias_correction=False)
    model = torch.nn.Linear(2, 2)
    defaults = new_optimizer(model, [{"params": list(model.parameters())}], recipe, 1.0).defaults
    assert (defaults["beta3"], defaults["use_bias_correction"], defaults["safeguard_warmup"]) == (0.9, False, True)
