# SPDX-License-Identifier: Apache-2.0
"""Settings that AdamW can compute with, and no others."""

import pytest
import torch

from diffusers_mdm.training.recipe.optimizer import OptimizerRecipe
from diffusers_mdm.training.state.optimizer import new_optimizer


def test_the_defaults_are_those_of_the_scripts_of_diffusers_but_for_weight_decay_and_clipping():
    recipe = OptimizerRecipe()
    optimizer = new_optimizer([{"params": [torch.nn.Parameter(torch.zeros(1))]}], recipe, 1e-3, fused=False)
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
    ],
)
def test_others_are_refused_by_name(field, value):
    with pytest.raises(ValueError, match=f"`{field}`"):
        OptimizerRecipe(**{field: value})
