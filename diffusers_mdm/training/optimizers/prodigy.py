# SPDX-License-Identifier: Apache-2.0
"""Prodigy (Mishchenko & Defazio 2024, "Prodigy: An Expeditiously Adaptive Parameter-Free Learner"), of prodigyopt:
Adam with a step size that it estimates itself.

The estimate is one number for all parameters, by which the learning rate is multiplied. So all parameters have the
same learning rate, and a new level begins with the estimate of the levels before it, from its own initial weights.
"""

import contextlib
import io
import math
from collections.abc import Collection

import torch

from ..recipe.optimizer import OptimizerRecipe
from .family import FP32_BYTES, Groups, OptimizerFamily, Shape


def create(
    model: torch.nn.Module, groups: Groups, recipe: OptimizerRecipe, learning_rate: float, is_sharded: bool
) -> torch.optim.Optimizer:
    """Return Prodigy for `groups`."""
    from prodigyopt import Prodigy

    with contextlib.redirect_stdout(io.StringIO()):  # it prints which kind of weight decay it has
        return Prodigy(
            groups,
            lr=learning_rate,
            betas=(recipe.adam_beta1, recipe.adam_beta2),
            beta3=recipe.prodigy_beta3,
            eps=recipe.adam_epsilon,
            weight_decay=recipe.adam_weight_decay,
            decouple=recipe.prodigy_decouple,
            use_bias_correction=recipe.prodigy_use_bias_correction,
            safeguard_warmup=recipe.prodigy_safeguard_warmup,
        )


def state_bytes(shape: Shape) -> int:
    """Return the memory of the two moments, the initial weights and the running sum of gradients."""
    return 4 * FP32_BYTES * math.prod(shape)


def other_shapes(shape: Shape) -> Collection[Shape]:
    """Return the shape of the initial weights and the sum of gradients, which are flat."""
    return {(math.prod(shape),)}


PRODIGY = OptimizerFamily(
    "Prodigy",
    create,
    state_bytes,
    other_shapes,
    shared=("d", "d_max", "d_numerator", "k"),
    package="prodigyopt",
    why_not_sharded="prodigyopt flattens parameters and sums its estimate on CUDA devices only",
)
