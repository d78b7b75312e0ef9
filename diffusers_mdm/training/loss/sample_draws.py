# SPDX-License-Identifier: Apache-2.0
"""All random numbers of a batch in training: a sample's depend only on the run's seed, the stage and its position.

So a step does not depend on how its batch is divided among processes and micro-batches, nor on resuming.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import torch

from ...pyramid import Pyramid, pyramid_noise
from ..seeds import derive_seed
from .counted_noise import normal_numbers, stream_keys, uniform_numbers
from .draws import offset_noise

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
            values += offset * self._normal(_OFFSET + level, (*values.shape[:2], *[1] * (values.ndim - 2)))
        return noise

    def _normal(self, stream: int, shape: Sequence[int]) -> torch.Tensor:
        keys = stream_keys(self.keys[: shape[0]], stream).to(self.device)
        return normal_numbers(keys, shape[1:])
