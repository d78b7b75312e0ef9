# SPDX-License-Identifier: Apache-2.0
"""The extra losses by the names that they have in recipes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from ..recipe.recipe import Recipe
from ..seeds import derive_seed
from .alignment import AlignmentLoss
from .extra_loss import ExtraLoss
from .frozen_networks import open_network
from .perceptual import PerceptualLoss


def open_alignment(recipe: Recipe, device: torch.device | str) -> ExtraLoss:
    """Return the recipe's `alignment`."""
    settings: Any = recipe.alignment
    channels = recipe.level_configs[0].block_out_channels[-1]
    return AlignmentLoss(settings, channels, open_network(settings.encoder, settings.image_side, device), device)


def open_perceptual(recipe: Recipe, device: torch.device | str) -> ExtraLoss:
    """Return the recipe's `perceptual`."""
    settings: Any = recipe.perceptual
    return PerceptualLoss(settings, open_network(settings.network, settings.image_side, device))


EXTRA_LOSSES: dict[str, Callable[[Recipe, torch.device | str], ExtraLoss]] = {
    "alignment": open_alignment,
    "perceptual": open_perceptual,
}


def open_extra_losses(recipe: Recipe, device: torch.device | str, seed: int) -> dict[str, ExtraLoss]:
    """Return the extra losses of a recipe by name. The weights of their layers depend only on the seed, and the global
    random generator is not used.

    Raises:
        ValueError: a network cannot be loaded.
    """
    opened = {}
    for number, name in enumerate(recipe.extra_losses):
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(derive_seed(seed, number))
            try:
                opened[name] = EXTRA_LOSSES[name](recipe, device)
            except ValueError as error:
                raise ValueError(f"`{name}`: {error}") from error
    return opened
