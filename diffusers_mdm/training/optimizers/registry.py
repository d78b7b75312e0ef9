# SPDX-License-Identifier: Apache-2.0
"""The families of optimizers by name."""

import importlib.util

import torch

from ..recipe.optimizer import OptimizerRecipe
from .adamw import ADAMW
from .adamw_8bit import ADAMW_8BIT
from .family import Groups, OptimizerFamily
from .muon import MUON
from .prodigy import PRODIGY

FAMILIES: dict[str, OptimizerFamily] = {
    "adamw": ADAMW,
    "adamw_8bit": ADAMW_8BIT,
    "muon": MUON,
    "prodigy": PRODIGY,
}


def family_of(recipe: OptimizerRecipe) -> OptimizerFamily:
    """Return the family of a recipe's optimizer."""
    return FAMILIES["adamw_8bit" if recipe.use_8bit_adam else recipe.name]


def new_optimizer(
    model: torch.nn.Module, groups: Groups, recipe: OptimizerRecipe, learning_rate: float, is_sharded: bool = False
) -> torch.optim.Optimizer:
    """Return the recipe's optimizer for the parameter groups of a model."""
    return family_of(recipe).create(model, groups, recipe, learning_rate, is_sharded)


def is_installed(recipe: OptimizerRecipe) -> bool:
    """Return whether the package that the optimizer needs is installed, if it needs one."""
    package = family_of(recipe).package
    return package is None or importlib.util.find_spec(package) is not None


def check_optimizer(recipe: OptimizerRecipe, is_sharded: bool) -> None:
    """Check that the optimizer can be used here.

    Raises:
        ValueError: its package is not installed, or it does not work with sharded parameters.
    """
    family = family_of(recipe)
    name = "use_8bit_adam" if recipe.use_8bit_adam else f"name: {recipe.name}"
    if not is_installed(recipe):
        raise ValueError(
            f"`optimizer.{name}` needs the package {family.package}: pip install {family.package}, or "
            'pip install -e ".[optimizers]" in a clone.'
        )
    if is_sharded and family.why_not_sharded is not None:
        raise ValueError(
            f"`optimizer.{name}` does not work with FSDP: {family.why_not_sharded}. Train without FSDP, with the "
            "whole model in every process (training/accelerate/ddp.yaml), or with the optimizer adamw or muon."
        )
