# SPDX-License-Identifier: Apache-2.0
"""Distributions of training: of t, and of noise with an offset."""

import math
from collections.abc import Sequence

import torch
from diffusers.utils.torch_utils import randn_tensor

from ...pyramid import Pyramid
from ..recipe.stage import StageRecipe


def row_timesteps(
    stage: StageRecipe, num_train_timesteps: int, chances: Sequence[float], device: torch.device | str
) -> torch.Tensor:
    """Return t of every sample, (B,) int64 in [0, num_train_timesteps): uniform or with the stage's bias if the
    `chances` are uniform in [0, 1).
    """
    timesteps = [timestep_at(stage, num_train_timesteps, chance) for chance in chances]
    return torch.tensor(timesteps, dtype=torch.int64).to(device)


def timestep_at(stage: StageRecipe, num_train_timesteps: int, chance: float) -> int:
    """Return the `chance` quantile, in [0, 1), of the stage's distribution of t.

    High t determine the content of an image, low t its details; a bias spends the steps where the model still has to
    learn. The lowest ("earlier") or highest ("later") fraction `timestep_bias_portion` of all t is sampled
    `timestep_bias_multiplier` times as often as the others.
    """
    favoured = max(1, int(stage.timestep_bias_portion * num_train_timesteps))
    others = num_train_timesteps - favoured
    times = stage.timestep_bias_multiplier
    if stage.timestep_bias_strategy == "none":
        timestep = chance * num_train_timesteps
    elif stage.timestep_bias_strategy == "earlier":
        place = chance * (favoured * times + others)
        timestep = place / times if place < favoured * times else favoured + (place - favoured * times)
    else:
        place = chance * (others + favoured * times)
        timestep = place if place < others else others + (place - others) / times
    return min(math.floor(timestep), num_train_timesteps - 1)


def offset_noise(noise: Pyramid, amount: float, generators: Sequence[torch.Generator] | None = None) -> Pyramid:
    """Add `amount` * N(0, 1), one number per sample, channel and level, to all pixels of the noise.

    White noise hardly changes an image's mean, so a model learns to read brightness from its input and then generates
    images of medium brightness; the offset hides the mean as the noise hides the rest (`--noise_offset` of diffusers'
    scripts). The offsets of levels are independent, like their noise: with a common offset, two levels with different
    signal powers would be two equations for the two unknowns mean and offset, and reveal the mean.

    Args:
        noise: levels (B_i, C, ...), innermost first.
        amount: standard deviation of the offsets; with 0, `noise` is returned and no numbers are sampled.
        generators: one per sample of level 0, or None for the global one; used for the innermost level first.
    """
    if amount == 0:
        return noise
    if generators is not None and len(generators) != len(noise[0]):
        raise ValueError(
            f"Got {len(generators)} generators for {len(noise[0])} samples; pass one generator per sample."
        )
    shifted = []
    for level in noise:
        shape = (*level.shape[:2], *[1] * (level.ndim - 2))
        rows = None if generators is None else list(generators[: len(level)])
        shifted.append(level + amount * randn_tensor(shape, generator=rows, device=level.device, dtype=level.dtype))
    return shifted
