# SPDX-License-Identifier: Apache-2.0
"""The order of the pictures: a function of seed and place in the stream alone.

An optimizer step s takes G = processes * accumulation * batch_size places s * G ... of an endless stream. Row j of
micro-batch m on process r has place s * G + (j * processes + r) * accumulation + m, so that the same G gives the same
step whatever it is made of, and the first rows of all batches together are the first places of the step, which is
what the outer levels of a thinned batch see.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch.utils.data import Sampler

from ..seeds import derive_seed


@dataclass(frozen=True)
class BatchOrder:
    """How the places of a step are dealt to micro-batches and processes."""

    batch_size: int
    accumulation: int = 1
    rank: int = 0
    world: int = 1
    seed: int = 0

    @property
    def places_per_step(self) -> int:
        """G, the pictures of one optimizer step over all processes."""
        return self.batch_size * self.accumulation * self.world

    def micro_batches(self, start_step: int = 0) -> Iterator[list[int]]:
        """This process' places of every micro-batch from step `start_step` on, without end."""
        place = start_step * self.places_per_step
        while True:
            for micro_batch in range(self.accumulation):
                rows = (row * self.world + self.rank for row in range(self.batch_size))
                yield [place + row * self.accumulation + micro_batch for row in rows]
            place += self.places_per_step


class ShuffledNumbers:
    """Which sample of a data set stands at a place of the endless stream.

    Place p holds entry p mod N of a permutation of the N samples drawn from (seed, p div N).
    """

    def __init__(self, num_samples: int, seed: int):
        self.num_samples, self.seed = num_samples, seed
        self._epoch, self._order = -1, torch.empty(0, dtype=torch.long)

    def number_at(self, place: int) -> int:
        """The number of the sample at `place`."""
        epoch, entry = divmod(place, self.num_samples)
        if epoch != self._epoch:
            self._epoch, self._order = epoch, epoch_order(self.num_samples, self.seed, epoch)
        return int(self._order[entry])


class PositionedBatches(Sampler[list[tuple[int, int]]]):
    """Endless micro-batches of (place, number) pairs, for any number of workers and from any step on."""

    def __init__(self, num_samples: int, order: BatchOrder, start_step: int = 0):
        self.num_samples, self.order, self.start_step = num_samples, order, start_step

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        numbers = ShuffledNumbers(self.num_samples, self.order.seed)
        for places in self.order.micro_batches(self.start_step):
            yield [(place, numbers.number_at(place)) for place in places]


def epoch_order(num_samples: int, seed: int, epoch: int) -> torch.Tensor:
    """The permutation of 0..num_samples-1 that belongs to (seed, epoch)."""
    generator = torch.Generator().manual_seed(derive_seed(seed, epoch))
    return torch.randperm(num_samples, generator=generator)
