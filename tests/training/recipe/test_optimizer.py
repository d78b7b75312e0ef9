# SPDX-License-Identifier: Apache-2.0
"""Settings that optimizers can compute with, and no others."""

import pytest
import torch

from diffusers_mdm.training.optimizers.registry import new_optimizer
from diffusers_mdm.training.recipe.optimizer import OptimizerRecipe


def test_the_defaults_are_those_of_the_scripts_of_diffusers_but_for_weight_decay_and_clipping():
    recipe = OptimizerRecipe()
    model = torch.nn.Linear(1, 1)
    optimizer = new_optimizer(model, [{"params": list(model.parameters())}], recipe, 1e-3)
    assert optimizer.defaults["betas"] == (0.9, 0.999)
    assert optimizer.defaults["eps"] == 1e-8
    assert (recipe.adam_weight_decay, recipe.max_grad_norm) == (0.0, 2.0)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("adam_beta1", 1.0),
        ("adam_beta2", -0.1),
        ("adam_epsilon", -1e-8),
        ("adam_weight_decay", float("nan")),
        ("max_grad_norm", 0.0),
        ("muon_momentum", 1.0),
        ("prodigy_beta3", 1.5),
    ],
)
def test_others_are_refused_by_name(field, value):
    with pytest.raises(ValueError, match=f"`{field}`"):
        OptimizerRecipe(**{field: value})


@pytest.mark.parametrize(
    ("fields", "field"),
    [
        ({"prodigy_beta3": 0.9}, "prodigy_beta3"),
        ({"name": "muon", "prodigy_decouple": False}, "prodigy_decouple"),
        ({"name": "prodigy", "muon_momentum": 0.9}, "muon_momentum"),
        ({"name": "muon", "use_8bit_adam": True}, "use_8bit_adam"),
        ({"name": "prodigy", "adam_epsilon": 0.0}, "adam_epsilon"),
    ],
)
def test_settings_of_another_optimizer_are_refused(fields, field):
    with pytest.raises(ValueError, match=f"optimizer.{field}"):
        OptimizerRecipe(**fields)
