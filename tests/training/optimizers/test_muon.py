# SPDX-License-Identifier: Apache-2.0
"""Muon: which parameters it trains, and by which updates."""

import math

import pytest
import torch

from diffusers_mdm.training.loop.start import build_unet
from diffusers_mdm.training.optimizers.muon import matrices_of, orthogonalize
from diffusers_mdm.training.optimizers.registry import new_optimizer
from diffusers_mdm.training.recipe.loading import load_recipe
from diffusers_mdm.training.recipe.optimizer import OptimizerRecipe
from tests.training.tiny_run import RECIPES

MUON = OptimizerRecipe(name="muon", adam_weight_decay=0.1)


def optimizer_for(parameters, model) -> torch.optim.Optimizer:
    return new_optimizer(model, [{"name": "all", "lr_scale": 2.0, "params": list(parameters)}], MUON, 1e-2)


def test_weights_of_layers_are_matrices_and_the_rest_is_not():
    unet = build_unet(load_recipe(RECIPES / "tiny.yaml"), 2)
    matrices = {id(parameter) for parameter in matrices_of(unet)}
    names = {name for name, parameter in unet.named_parameters() if id(parameter) in matrices}
    assert {"encoder_hid_proj.weight", "levels.1.encoder.in_adapter.weight"} <= names
    assert "levels.0.encoder.down_blocks.0.resnets.0.conv1.weight" in names
    assert not any(name.endswith(("bias", "conv_in.weight", "conv_out.weight")) or "norm" in name for name in names)
    assert all(parameter.ndim >= 2 for parameter in matrices_of(unet))


def test_embeddings_are_no_matrices_even_if_a_layer_shares_their_weights():
    model = torch.nn.ModuleDict({"embedding": torch.nn.Embedding(8, 4), "head": torch.nn.Linear(4, 8, bias=False)})
    model["head"].weight = model["embedding"].weight
    assert matrices_of(model) == []


def test_groups_are_split_and_keep_their_names_and_rates():
    model = torch.nn.Linear(3, 2)
    groups = optimizer_for(model.parameters(), model).param_groups
    assert [(group["name"], group["lr_scale"], group["is_matrix"]) for group in groups] == [
        ("all", 2.0, True),
        ("all", 2.0, False),
    ]


def test_a_model_of_matrices_alone_needs_no_adamw():
    model = torch.nn.Linear(3, 2, bias=False)
    optimizer = optimizer_for(model.parameters(), model)
    model.weight.grad = torch.ones_like(model.weight)
    optimizer.step()
    assert optimizer.state[model.weight].keys() == {"momentum_buffer"}


@pytest.mark.parametrize("shape", [(6, 20), (20, 6), (7, 7)])
def test_singular_values_become_about_one(shape):
    torch.manual_seed(0)
    matrix = torch.randn(shape)
    values = torch.linalg.svdvals(orthogonalize(matrix))
    assert 0.3 < values.min() <= values.max() < 1.3  # the smallest of a random square matrix are slow
    turned = torch.linalg.svd(matrix, full_matrices=False)
    # The same singular vectors: turned into them, it is diagonal.
    diagonal = turned.U.T @ orthogonalize(matrix) @ turned.Vh.T
    torch.testing.assert_close(diagonal, torch.diag(diagonal.diagonal()), atol=1e-4, rtol=0)


def test_a_gradient_of_zeros_changes_nothing_but_the_decay():
    model = torch.nn.Linear(3, 2, bias=False)
    before = model.weight.detach().clone()
    optimizer = optimizer_for(model.parameters(), model)
    model.weight.grad = torch.zeros_like(model.weight)
    optimizer.step()
    torch.testing.assert_close(model.weight.detach(), before * (1 - 1e-2 * 0.1))


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
def test_a_convolution_is_updated_as_its_flattened_matrix(memory_format):
    torch.manual_seed(0)
    convolution, linear = torch.nn.Conv2d(4, 6, 3, bias=False), torch.nn.Linear(36, 6, bias=False)
    linear.weight.data.copy_(convolution.weight.data.flatten(1))
    convolution = convolution.to(memory_format=memory_format)
    optimizers = [optimizer_for(model.parameters(), model) for model in (convolution, linear)]
    for _ in range(3):
        gradient = torch.randn(6, 4, 3, 3)
        convolution.weight.grad, linear.weight.grad = gradient, gradient.flatten(1)
        for optimizer in optimizers:
            optimizer.step()
    torch.testing.assert_close(convolution.weight.flatten(1), linear.weight)


@pytest.mark.skipif(not hasattr(torch.optim, "Muon"), reason="torch has it from 2.9 on")
def test_matrices_move_as_by_muon_of_torch():
    torch.manual_seed(0)
    ours, theirs = torch.nn.Linear(20, 8, bias=False), torch.nn.Linear(20, 8, bias=False)
    theirs.load_state_dict(ours.state_dict())
    settings = {"lr": 1e-2, "weight_decay": 0.1, "momentum": 0.95, "adjust_lr_fn": "match_rms_adamw"}
    optimizers = [optimizer_for(ours.parameters(), ours), torch.optim.Muon(theirs.parameters(), **settings)]
    start = ours.weight.detach().clone()
    for _ in range(3):
        ours.weight.grad = torch.randn(8, 20)
        theirs.weight.grad = ours.weight.grad.clone()
        for optimizer in optimizers:
            optimizer.step()
    moved = (ours.weight - start).norm()
    assert (ours.weight - theirs.weight).norm() < 0.03 * moved  # theirs computes in bfloat16


def test_updates_have_the_size_of_those_of_adamw():
    torch.manual_seed(0)
    model = torch.nn.Linear(64, 32, bias=False)
    before = model.weight.detach().clone()
    optimizer = new_optimizer(
        model, [{"params": list(model.parameters())}], OptimizerRecipe(name="muon"), learning_rate=1e-2
    )
    model.weight.grad = torch.randn(32, 64)
    optimizer.step()
    size = (model.weight.detach() - before).square().mean().sqrt().item()
    assert math.isclose(size, 0.2 * 1e-2, rel_tol=0.3)
