# SPDX-License-Identifier: Apache-2.0
"""AdamW (Loshchilov & Hutter 2019)."""

import math

import torch

from ..recipe.optimizer import OptimizerRecipe
from .family import FP32_BYTES, Groups, OptimizerFamily, Shape


def create(
    model: torch.nn.Module, groups: Groups, recipe: OptimizerRecipe, learning_rate: float, is_sharded: bool
) -> torch.optim.Optimizer:
    """Return AdamW for `groups`, in one kernel where parameters are not sharded."""
    return torch.optim.AdamW(
        groups,
        lr=learning_rate,
        betas=(recipe.adam_beta1, recipe.adam_beta2),
        eps=recipe.adam_epsilon,
        weight_decay=recipe.adam_weight_decay,
        fused=not is_sharded,
    )


def state_bytes(shape: Shape) -> int:
    """Return the memory of the two moments."""
    return 2 * FP32_BYTES * math.prod(shape)


ADAMW = OptimizerFamily("AdamW", create, state_bytes)
