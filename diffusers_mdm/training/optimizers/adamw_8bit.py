# SPDX-License-Identifier: Apache-2.0
"""AdamW with moments in 8 bits (Dettmers et al. 2022, "8-bit Optimizers via Block-wise Quantization"), of
bitsandbytes.

Parameters of fewer than 4096 weights keep moments of 32 bits. The others have, beside the codes of both moments, the
largest value of every block of 256 and the table of what the codes mean; a checkpoint contains all of these as they
are, so that a resumed run continues exactly.
"""

import math
from collections.abc import Collection

import torch

from ..recipe.optimizer import OptimizerRecipe
from .family import FP32_BYTES, Groups, OptimizerFamily, Shape

_BLOCK, _NUM_CODES, _SMALLEST = 256, 256, 4096


def create(
    model: torch.nn.Module, groups: Groups, recipe: OptimizerRecipe, learning_rate: float, is_sharded: bool
) -> torch.optim.Optimizer:
    """Return 8-bit AdamW for `groups`."""
    from bitsandbytes.optim import AdamW8bit

    return AdamW8bit(
        groups,
        lr=learning_rate,
        betas=(recipe.adam_beta1, recipe.adam_beta2),
        eps=recipe.adam_epsilon,
        weight_decay=recipe.adam_weight_decay,
    )


def state_bytes(shape: Shape) -> int:
    """Return the memory of the two moments."""
    number = math.prod(shape)
    if number < _SMALLEST:
        return 2 * FP32_BYTES * number
    return 2 * (number + FP32_BYTES * _num_blocks(number))


def other_shapes(shape: Shape) -> Collection[Shape]:
    """Return the shapes of the largest values and of the table of codes."""
    return {(_num_blocks(math.prod(shape)),), (_NUM_CODES,)}


def _num_blocks(number: int) -> int:
    return -(-number // _BLOCK)


ADAMW_8BIT = OptimizerFamily(
    "8-bit AdamW",
    create,
    state_bytes,
    other_shapes,
    package="bitsandbytes",
    # It makes weights contiguous in its steps, but not the moments beside them.
    only_contiguous=True,
    why_not_sharded="bitsandbytes reads whole parameters from memory, not shards of FSDP",
)
