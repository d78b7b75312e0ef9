# SPDX-License-Identifier: Apache-2.0
"""What a run has to know of a family of optimizers: how to create one, and what its state is made of."""

from collections.abc import Callable, Collection
from dataclasses import dataclass
from typing import Any

import torch

from ..recipe.optimizer import OptimizerRecipe

Groups = list[dict[str, Any]]
Shape = tuple[int, ...]
FP32_BYTES = 4


def no_other_shapes(shape: Shape) -> Collection[Shape]:
    """Return the shapes of entries of the state of families whose entries all have the shape of their parameter."""
    return ()


@dataclass(frozen=True)
class OptimizerFamily:
    """A family of optimizers.

    Attributes:
        title: its name in texts.
        create: returns the optimizer of a stage from the model, its parameter groups, the recipe, the learning rate,
            and whether parameters are sharded over processes.
        state_bytes: returns the memory of its state for a parameter of this shape.
        other_shapes: returns the shapes, beside scalars and that of a parameter itself, that its state can have for a
            parameter of this shape.
        shared: keys of the parameter groups that steps change. All groups have the same values, which belong to the
            optimizer as a whole and are saved with its state.
        package: the package that it needs, as it is imported; None if it needs none.
        only_contiguous: whether it needs contiguous weights.
        why_not_sharded: why it cannot be used with FSDP, as part of a sentence; None if it can.
    """

    title: str
    create: Callable[[torch.nn.Module, Groups, OptimizerRecipe, float, bool], torch.optim.Optimizer]
    state_bytes: Callable[[Shape], int]
    other_shapes: Callable[[Shape], Collection[Shape]] = no_other_shapes
    shared: tuple[str, ...] = ()
    package: str | None = None
    only_contiguous: bool = False
    why_not_sharded: str | None = None
