# SPDX-License-Identifier: Apache-2.0
"""8-bit AdamW: it follows AdamW closely, in a fraction of the memory."""

import pytest
import torch

from diffusers_mdm.training.optimizers.registry import FAMILIES, new_optimizer
from diffusers_mdm.training.recipe.optimizer import OptimizerRecipe


def test_it_follows_adamw():
    pytest.importorskip("bitsandbytes")
    torch.manual_seed(0)
    one, other = torch.nn.Linear(128, 64), torch.nn.Linear(128, 64)
    other.load_state_dict(one.state_dict())
    start = one.weight.detach().clone()
    recipes = (OptimizerRecipe(use_8bit_adam=True), OptimizerRecipe())
    optimizers = [
        new_optimizer(model, [{"params": list(model.parameters())}], recipe, 1e-3)
        for model, recipe in zip((one, other), recipes, strict=True)
    ]
    for _ in range(20):
        for (name, parameter), copy in zip(one.named_parameters(), other.parameters(), strict=True):
            parameter.grad = torch.randn(parameter.shape) + (name == "weight")
            copy.grad = parameter.grad.clone()
        for optimizer in optimizers:
            optimizer.step()
    assert (one.weight - other.weight).norm() < 0.1 * (one.weight - start).norm()
    assert optimizers[0].state[one.weight]["state1"].dtype == torch.uint8
    torch.testing.assert_close(one.bias, other.bias)  # few weights keep moments of 32 bits


def test_it_needs_about_a_quarter_of_the_memory():
    shape = (256, 256, 3, 3)
    share = FAMILIES["adamw_8bit"].state_bytes(shape) / FAMILIES["adamw"].state_bytes(shape)
    assert 0.25 < share < 0.26
    assert FAMILIES["adamw_8bit"].state_bytes((64,)) == FAMILIES["adamw"].state_bytes((64,))
