# SPDX-License-Identifier: Apache-2.0
"""What holds for every optimizer: it learns, its state is saved by name, and a restored one continues exactly."""

import importlib.util

import pytest
import torch
from safetensors.torch import load, save

from diffusers_mdm.training.optimizers.registry import FAMILIES, check_optimizer, family_of, new_optimizer
from diffusers_mdm.training.recipe.optimizer import OptimizerRecipe
from diffusers_mdm.training.state.optimizer import take_optimizer_state, whole_optimizer_state

RECIPES = {
    "adamw": OptimizerRecipe(),
    "adamw_8bit": OptimizerRecipe(use_8bit_adam=True),
    "muon": OptimizerRecipe(name="muon"),
    "prodigy": OptimizerRecipe(name="prodigy"),
}
INSTALLED = [
    pytest.param(
        name,
        marks=pytest.mark.skipif(
            family.package is not None and importlib.util.find_spec(family.package) is None,
            reason=f"needs {family.package}",
        ),
    )
    for name, family in FAMILIES.items()
]


def small_model(seed: int, levels: int = 1) -> torch.nn.ModuleList:
    """A convolution of more than 4096 weights, a matrix and an embedding per level."""
    torch.manual_seed(seed)
    return torch.nn.ModuleList(
        torch.nn.ModuleDict(
            {
                "conv": torch.nn.Conv2d(8, 64, 3),
                "linear": torch.nn.Linear(12, 9),
                "embedding": torch.nn.Embedding(5, 4),
            }
        )
        for _ in range(levels)
    )


def optimizer_for(name: str, model: torch.nn.Module) -> torch.optim.Optimizer:
    rate = 1.0 if name == "prodigy" else 1e-2
    groups = [
        {"name": str(level), "lr_scale": 1.0, "params": list(part.parameters())} for level, part in enumerate(model)
    ]
    return new_optimizer(model, groups, RECIPES[name], rate)


def step(model: torch.nn.Module, optimizer: torch.optim.Optimizer, number: int) -> float:
    """Take a step towards other weights, with noise in the gradients; return the distance from them before."""
    noises, targets = torch.Generator().manual_seed(number), torch.Generator().manual_seed(99)
    distance = 0.0
    for parameter in model.parameters():
        error = parameter.detach() - 0.3 * torch.randn(parameter.shape, generator=targets)
        distance += error.square().sum().item()
        parameter.grad = error + 0.1 * torch.randn(parameter.shape, generator=noises)
    optimizer.step()
    return distance


@pytest.mark.parametrize("name", INSTALLED)
def test_it_learns(name):
    model = small_model(0)
    optimizer = optimizer_for(name, model)
    distances = [step(model, optimizer, number) for number in range(60)]
    assert distances[-1] < 0.98 * distances[0]


@pytest.mark.parametrize("name", INSTALLED)
def test_a_restored_optimizer_continues_exactly_and_a_new_level_starts_from_scratch(name):
    model, shared = small_model(0), FAMILIES[name].shared
    optimizer = optimizer_for(name, model)
    for number in range(3):
        step(model, optimizer, number)
    state = load(save(whole_optimizer_state(optimizer, model.named_parameters(), shared)))
    resumed, grown = small_model(1), small_model(2, levels=2)
    for other in (resumed, grown):
        other.load_state_dict(model.state_dict(), strict=False)
    continued = {copy: optimizer_for(name, copy) for copy in (resumed, grown)}
    for copy, other in continued.items():
        take_optimizer_state(other, copy.named_parameters(), state)
    again = whole_optimizer_state(continued[resumed], resumed.named_parameters(), shared)
    assert again.keys() == state.keys()
    for key, value in state.items():
        assert value.dtype == again[key].dtype, key
        assert torch.equal(value, again[key]), key
    assert not any(parameter in continued[grown].state for parameter in grown[1].parameters())
    for number in (3, 4):
        step(model, optimizer, number)
        step(resumed, continued[resumed], number)
    for one, other in zip(model.parameters(), resumed.parameters(), strict=True):
        assert torch.equal(one, other)
    step(grown, continued[grown], 5)
    assert all(torch.isfinite(parameter).all() for parameter in grown.parameters())


@pytest.mark.parametrize("name", INSTALLED)
def test_the_state_has_the_shapes_and_the_size_that_its_family_names(name):
    model, family = small_model(0), FAMILIES[name]
    optimizer = optimizer_for(name, model)
    step(model, optimizer, 0)
    parameters = dict(model.named_parameters())
    state = whole_optimizer_state(optimizer, parameters.items(), family.shared)
    sizes = dict.fromkeys(parameters, 0)
    for key, value in state.items():
        parameter, _, entry = key.partition("//")
        if not parameter:
            assert entry in family.shared
            continue
        shape = tuple(parameters[parameter].shape)
        assert tuple(value.shape) in {(), shape, *family.other_shapes(shape)}, key
        if value.ndim and not entry.startswith("qmap"):  # one table for all parameters
            sizes[parameter] += value.numel() * value.element_size()
    for parameter, value in parameters.items():
        # Embeddings are matrices for the estimate, but not for Muon.
        if name != "muon" or "embedding" not in parameter:
            assert sizes[parameter] == family.state_bytes(tuple(value.shape)), parameter


def test_every_family_has_a_recipe():
    assert {name: family_of(recipe) for name, recipe in RECIPES.items()} == FAMILIES


def test_a_missing_package_is_named(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    check_optimizer(RECIPES["adamw"], is_sharded=True)
    check_optimizer(RECIPES["muon"], is_sharded=True)
    with pytest.raises(ValueError, match=r"`optimizer\.use_8bit_adam` needs .* pip install bitsandbytes"):
        check_optimizer(RECIPES["adamw_8bit"], is_sharded=False)
    with pytest.raises(ValueError, match=r"`optimizer\.name: prodigy` needs the package prodigyopt"):
        check_optimizer(RECIPES["prodigy"], is_sharded=False)


def test_what_cannot_be_sharded_is_refused_with_the_reason(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: name)
    for name in ("adamw_8bit", "prodigy"):
        check_optimizer(RECIPES[name], is_sharded=False)
        with pytest.raises(ValueError, match="does not work with FSDP: "):
            check_optimizer(RECIPES[name], is_sharded=True)
