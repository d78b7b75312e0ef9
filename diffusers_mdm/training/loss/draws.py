# SPDX-License-Identifier: Apache-2.0
"""The random numbers of a batch in training, and their distributions: of t, and of noise with an offset.

Those of a sample depend only on the run's seed, the stage and its position. So a step does not depend on how its batch
is divided among processes and micro-batches, nor on resuming.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Protocol

import torch
from diffusers.utils.torch_utils import randn_tensor

from ...pyramid import Pyramid, pyramid_noise
from ..recipe.stage import StageRecipe
from ..seeds import derive_seed
from .counted_noise import normal_numbers, stream_keys, uniform_numbers

_CHANCES, _TIMESTEP, _LATENTS, _NOISE, _OFFSET = 0, 1, 2, 3, 1000  # streams; one per level from the last two on
# Elsewhere generators are as fast (CPU), or 64-bit integers are not well supported.
_COUNTING_DEVICES = ("cuda", "xpu")


class SampleDraws(Protocol):
    """The random numbers of a batch; each method is called at most once, in the order in which they stand here."""

    def chances(self) -> torch.Tensor:
        """Return two uniform numbers in [0, 1) for every sample, (B, 2) on the CPU."""
        ...

    def timestep_chances(self) -> list[float]:
        """Return a uniform number in [0, 1) for every sample, of double precision."""
        ...

    def latent_generators(self) -> list[torch.Generator]:
        """Return a generator for every sample, with which an autoencoder's latents are sampled."""
        ...

    def noise(self, shapes: Sequence[Sequence[int]], offset: float = 0.0) -> Pyramid:
        """Return N(0, 1) noise of `shapes` (levels (B_i, ...), innermost first), plus `offset_noise`."""
        ...


def sample_draws(place: Sequence[int], positions: torch.Tensor, device: torch.device) -> SampleDraws:
    """Return the random numbers of a batch for its device.

    Args:
        place: seed of the run, and what else distinguishes the stage.
        positions: (B,) int64 on the CPU, position of every sample in the stage's stream.
        device: where noise is needed.
    """
    kind = CountedDraws if device.type in _COUNTING_DEVICES else GeneratorDraws
    return kind(place, positions, device)


class GeneratorDraws:
    """Random numbers from a `torch.Generator` per sample; see `sample_draws`."""

    def __init__(self, place: Sequence[int], positions: torch.Tensor, device: torch.device):
        self.device = device
        self.generators = [
            torch.Generator().manual_seed(derive_seed(*place, position)) for position in positions.tolist()
        ]
        self.large: list[torch.Generator] | None = None  # for what is as large as the images

    def chances(self) -> torch.Tensor:
        """Return two uniform numbers in [0, 1) for every sample, (B, 2)."""
        return torch.stack([torch.rand(2, generator=generator) for generator in self.generators])

    def timestep_chances(self) -> list[float]:
        """Return a uniform number in [0, 1) for every sample."""
        return [torch.rand((), generator=generator, dtype=torch.float64).item() for generator in self.generators]

    def latent_generators(self) -> list[torch.Generator]:
        """Return the generators of `noise`, which continues with them."""
        if self.large is None:
            self.large = self.generators
            if self.device.type != "cpu":
                # Large noise is sampled on the device, by generators that are seeded from those of the samples.
                seeds = [int(torch.randint(2**62, (), generator=generator)) for generator in self.generators]
                self.large = [torch.Generator(self.device).manual_seed(seed) for seed in seeds]
        return self.large

    def noise(self, shapes: Sequence[Sequence[int]], offset: float = 0.0) -> Pyramid:
        """Return noise of `shapes`, innermost level first."""
        generators = self.latent_generators()
        return offset_noise(pyramid_noise(shapes, generators, device=self.device), offset, generators)


class CountedDraws:
    """Random numbers computed for all samples at once; see `sample_draws` and `counted_noise`."""

    def __init__(self, place: Sequence[int], positions: torch.Tensor, device: torch.device):
        self.device = device
        self.keys = stream_keys(positions.to("cpu", torch.int64), derive_seed(*place) >> 1)

    def chances(self) -> torch.Tensor:
        """Return two uniform numbers in [0, 1) for every sample, (B, 2)."""
        return uniform_numbers(stream_keys(self.keys, _CHANCES), 2)

    def timestep_chances(self) -> list[float]:
        """Return a uniform number in [0, 1) for every sample."""
        return uniform_numbers(stream_keys(self.keys, _TIMESTEP), 1)[:, 0].tolist()

    def latent_generators(self) -> list[torch.Generator]:
        """Return a generator for every sample."""
        keys = (stream_keys(self.keys, _LATENTS) & (2**62 - 1)).tolist()
        return [torch.Generator(self.device).manual_seed(key) for key in keys]

    def noise(self, shapes: Sequence[Sequence[int]], offset: float = 0.0) -> Pyramid:
        """Return noise of `shapes`, innermost level first."""
        noise = [self._normal(_NOISE + level, shape) for level, shape in enumerate(shapes)]
        if offset == 0:
            return noise
        for level, values in enumerate(noise):
            values += offset * self._normal(_OFFSET + level, offset_shape(values))
        return noise

    def _normal(self, stream: int, shape: Sequence[int]) -> torch.Tensor:
        keys = stream_keys(self.keys[: shape[0]], stream).to(self.device)
        return normal_numbers(keys, shape[1:])


def sample_timesteps(
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
        own = None if generators is None else list(generators[: len(level)])
        shifted.append(
            level + amount * randn_tensor(offset_shape(level), generator=own, device=level.device, dtype=level.dtype)
        )
    return shifted


def offset_shape(level: torch.Tensor) -> tuple[int, ...]:
    """Return the shape of the offsets of a level (B, C, ...): one number per sample and channel."""
    return (*level.shape[:2], *[1] * (level.ndim - 2))
