# SPDX-License-Identifier: Apache-2.0
"""The order of the samples, which depends only on the seed and the position in an endless stream.

Optimizer step s uses the G = processes * accumulation * batch_size positions from s * G on. Sample j of micro-batch m
on process r has position s * G + (j * processes + r) * accumulation + m. So a step contains the same samples for the
same G, however it is divided, and the first samples of all micro-batches together are the first positions of the step;
these are the samples that outer levels with a smaller batch are trained on.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch.utils.data import Sampler

from ..seeds import derive_seed


@dataclass(frozen=True)
class BatchOrder:
    """How the positions of a step are distributed over micro-batches and processes."""

    batch_size: int
    accumulation: int = 1
    rank: int = 0
    world: int = 1
    seed: int = 0

    @property
    def places_per_step(self) -> int:
        """G, the number of samples of one optimizer step over all processes."""
        return self.batch_size * self.accumulation * self.world

    def micro_batches(self, start_step: int = 0) -> Iterator[list[int]]:
        """Yield this process's positions of every micro-batch from step `start_step` on, without end."""
        start = start_step * self.places_per_step
        while True:
            for micro_batch in range(self.accumulation):
                places = (number * self.world + self.rank for number in range(self.batch_size))
                yield [start + place * self.accumulation + micro_batch for place in places]
            start += self.places_per_step


class ShuffledNumbers:
    """Maps positions in the endless stream to samples of a data set.

    Position p is entry p mod N of a permutation of the N samples that is seeded with (seed, p div N).
    """

    def __init__(self, num_samples: int, seed: int):
        self.num_samples, self.seed = num_samples, seed
        self._epoch, self._order = -1, torch.empty(0, dtype=torch.long)

    def number_at(self, place: int) -> int:
        """Return the number of the sample at position `place`."""
        epoch, entry = divmod(place, self.num_samples)
        if epoch != self._epoch:
            self._epoch, self._order = epoch, epoch_order(self.num_samples, self.seed, epoch)
        return int(self._order[entry])


class PositionedBatches(Sampler[list[tuple[int, int]]]):
    """Endless micro-batches of (position, number) pairs, independent of the number of workers, from any step on."""

    def __init__(self, num_samples: int, order: BatchOrder, start_step: int = 0):
        self.num_samples, self.order, self.start_step = num_samples, order, start_step

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        numbers = ShuffledNumbers(self.num_samples, self.order.seed)
        for places in self.order.micro_batches(self.start_step):
            yield [(place, numbers.number_at(place)) for place in places]


def epoch_order(num_samples: int, seed: int, epoch: int) -> torch.Tensor:
    """Return the permutation of 0..num_samples-1 for (seed, epoch)."""
    generator = torch.Generator().manual_seed(derive_seed(seed, epoch))
    return torch.randperm(num_samples, generator=generator)
