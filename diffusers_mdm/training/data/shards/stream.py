# SPDX-License-Identifier: Apache-2.0
"""The order of samples streamed from WebDataset tar files, and resuming in the middle of it.

One reader in each process determines the order and passes references to the workers, which read and decode. So the
order does not depend on the number of workers, and when a run resumes, earlier samples are counted but not read.

With S shards and W processes, each process has S div W whole shards; the remaining shards are shared, and each process
takes every W-th of their samples. An epoch of a process consists of all of its samples: its shards in an order seeded
with (seed, process, epoch), their samples in sequence, divided into blocks of `shuffle_buffer` samples, each of which
is shuffled as a whole. Positions are numbered as for all other data, but the sample at a position depends on W.

This is our own reader, based on tarfile, for one reason: a resumed run continues at once with exactly the samples that
it would otherwise have seen. A streamed data set of `datasets` can be resumed (`state_dict`), but loses the samples in
its shuffle buffer; the webdataset library cannot resume; and both read everything that they skip.
"""

from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import NamedTuple

import torch

from ...seeds import derive_seed
from ..order import BatchOrder, epoch_order
from ..reading import PREFETCHED_BATCHES, Request
from ..skip_budget import Skip, SkipBudget
from .files import ShardFiles
from .index import TarIndex, TarSample

MAX_SPARES = 64
KEPT_SAMPLES = 200_000  # how many samples' places are remembered from one epoch to the next
_SHARD_STREAM, _BLOCK_STREAM = 201, 202


class Share(NamedTuple):
    """Samples `phase`, `phase` + `stride` … of shard number `shard`."""

    shard: int
    phase: int
    stride: int


def shares_of(num_shards: int, seed: int, rank: int, world: int) -> list[Share]:
    """Return the shares of one of `world` processes: whole shards, and every `world`-th sample of the remaining
    ones.
    """
    order = epoch_order(num_shards, derive_seed(seed, _SHARD_STREAM), 0).tolist()
    num_whole = num_shards // world * world
    whole = [Share(shard, 0, 1) for shard in order[:num_whole][rank::world]]
    return whole + [Share(shard, rank, world) for shard in order[num_whole:]]


class Block(NamedTuple):
    """Samples in the order in which they are used, and some samples of the previous block."""

    samples: list[TarSample]
    before: list[TarSample]

    def spares_after(self, number: int) -> list[TarSample]:
        """Return substitutes for samples up to `number`: those that follow, then those of the previous block."""
        size = len(self.samples)
        ahead = [self.samples[(number + 1 + step) % size] for step in range(min(MAX_SPARES, size - 1))]
        return (ahead + self.before)[:MAX_SPARES]


class ShardStream:
    """The endless sequence of one process's samples.

    Args:
        shards: paths or URLs.
        order: seed, process and batch size.
        buffer: number of samples that are shuffled together.
        skipped: counts damaged shards.
        num_workers: number of reading workers; a downloaded shard is kept as long as they may need it.
    """

    def __init__(self, shards: Sequence[str], order: BatchOrder, buffer: int, skipped: SkipBudget, num_workers: int):
        self.shards, self.order, self.buffer, self.skipped = shards, order, buffer, skipped
        self.shares = shares_of(len(shards), order.seed, order.rank, order.world)
        in_flight = (num_workers * PREFETCHED_BATCHES + 2) * order.batch_size
        self.files = ShardFiles(lag=2 * buffer + in_flight + MAX_SPARES)
        self._kept: dict[Share, TarIndex] = {}
        self._num_kept = 0
        self._counts: dict[Share, int] = {}
        self._num_streamed = 0

    def requests(self, start_step: int = 0) -> Iterator[Request]:
        """Yield the micro-batches from step `start_step` on, without end."""
        order = self.order
        places = self.places(start_step * order.batch_size * order.accumulation)
        for positions in order.micro_batches(start_step):
            taken = [next(places) for _ in positions]
            references = [block.samples[number] for block, number in taken]
            yield Request(positions, references, taken[-1][0].spares_after(taken[-1][1]))

    def places(self, skip: int) -> Iterator[tuple[Block, int]]:
        """Yield each sample from number `skip` on, as a block and the index in it."""
        with ThreadPoolExecutor(max_workers=1) as ahead:
            epoch = 0
            while True:
                if len(self._counts) == len(self.shares) and skip >= (total := sum(self._counts.values())):
                    skip -= total
                    epoch += 1
                    continue
                for block in self.blocks(epoch, ahead):
                    size = len(block.samples)
                    yield from ((block, number) for number in range(skip, size))
                    skip = max(skip - size, 0)
                if not sum(self._counts.values()):
                    raise ValueError(
                        f"The shards of this process contain no samples; they are {', '.join(self.shards[:3])} … "
                        "Expected tar files with 000001.jpg, 000001.txt (or .json) and so on, and more samples than "
                        "processes."
                    )
                epoch += 1

    def blocks(self, epoch: int, ahead: ThreadPoolExecutor) -> Iterator[Block]:
        """Yield the samples of one epoch in shuffled blocks."""
        pending, block, number = list[TarSample](), Block([], []), 0
        shards = self._shards_of_epoch(epoch, ahead)
        while True:
            while len(pending) < self.buffer and (samples := next(shards, None)) is not None:
                pending += samples
            if not pending:
                return
            seed = derive_seed(self.order.seed, self.order.rank, epoch, number, _BLOCK_STREAM)
            block = Block(shuffled(pending[: self.buffer], seed), block.samples[:MAX_SPARES])
            yield block
            pending, number = pending[self.buffer :], number + 1

    def _shards_of_epoch(self, epoch: int, ahead: ThreadPoolExecutor) -> Iterator[list[TarSample]]:
        permutation = epoch_order(len(self.shares), derive_seed(self.order.seed, self.order.rank), epoch).tolist()
        upcoming: Future[TarIndex] = ahead.submit(self._index, self.shares[permutation[0]])
        for place, number in enumerate(permutation):
            index = upcoming.result()
            if place + 1 < len(permutation):
                upcoming = ahead.submit(self._index, self.shares[permutation[place + 1]])
            share = self.shares[number]
            if index.problem is not None:
                self.skipped.add([Skip(self.shards[share.shard], index.problem)])
            self._counts[share] = len(index.samples)
            self._num_streamed += len(index.samples)
            yield index.samples
            self.files.retire(index.path, self._num_streamed)

    def _index(self, share: Share) -> TarIndex:
        """Return this process's samples of a shard; called in the thread that reads ahead."""
        if share in self._kept:
            return self._kept[share]
        index = self.files.index(self.shards[share.shard])
        index = index._replace(samples=index.samples[share.phase :: share.stride])
        is_local = index.path == self.shards[share.shard]
        if is_local and self._num_kept + len(index.samples) <= KEPT_SAMPLES:
            self._kept[share] = index
            self._num_kept += len(index.samples)
        return index


def shuffled(samples: list[TarSample], seed: int) -> list[TarSample]:
    """Return the samples in a random order seeded with `seed`."""
    order = torch.randperm(len(samples), generator=torch.Generator().manual_seed(seed))
    return [samples[number] for number in order.tolist()]
