# SPDX-License-Identifier: Apache-2.0
"""Reading the samples of a batch, here or in worker processes, with substitutes for samples that cannot be used."""

import atexit
import contextlib
import itertools
import signal
import weakref
from collections.abc import Generator, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

import torch
from torch.utils.data import DataLoader, Dataset

from ...pyramid import Size
from .batch import Batch
from .samples import DecodedSample, Sample, SampleDecoder
from .skip_budget import Skip, SkipBudget, UnusableSampleError
from .text.features import TextEmbeddings

PREFETCHED_BATCHES = 2  # batches per worker
SIGNAL_GRACE_SECONDS = 600


class Request(NamedTuple):
    """The samples of a micro-batch.

    Attributes:
        positions: position of each sample in the stage's stream.
        references: the samples, as references that their source understands.
        spares: substitutes for samples that cannot be used; the first usable one is taken.
        size: height and width to which images are cropped; None for the decoder's own.
    """

    positions: list[int]
    references: list[Any]
    spares: Sequence[Any] = ()
    size: Size | None = None


class SampleSource(Protocol):
    """A source from which samples are read."""

    def name(self, reference: Any) -> str:
        """Return the name of the sample for messages."""

    def read(self, reference: Any) -> Sample:
        """Read the sample; raises `UnusableSampleError` if that is impossible."""

    def substitutes(self, reference: Any, request: Request) -> Iterable[Any]:
        """Return substitutes for a sample, in order of preference; depends only on its arguments."""


class NumberedSource(SampleSource, Protocol):
    """A source of samples with the references 0, 1 …"""

    def __len__(self) -> int: ...


class Reading(NamedTuple):
    """A batch, and the samples skipped for it; the batch is None if there was no usable substitute for a sample."""

    batch: Batch | None
    skips: list[Skip]


@dataclass(frozen=True)
class BatchReader(Dataset[Reading]):
    """Reads batches of samples from `source`.

    Attributes:
        source: the samples.
        decoder: decodes them.
        seed: seed of random crops, frames and captions.
        max_skips: how many samples are tried for one place in a batch before giving up.
        embeddings: precomputed features of the captions.
    """

    source: SampleSource
    decoder: SampleDecoder
    seed: int
    max_skips: int
    embeddings: TextEmbeddings | None = None

    def __getitem__(self, request: Request) -> Reading:
        """Read one batch."""
        skips: list[Skip] = []
        samples, captions = [], []
        for position, reference in zip(request.positions, request.references, strict=True):
            found = self.read_sample(position, reference, request, skips)
            if found is None:
                return Reading(None, skips)
            samples.append(found[0])
            captions.append(self.decoder.captions.choose(found[1].all_captions, self.seed, position))
        return Reading(stack_samples(samples, captions, request.positions, self.embeddings), skips)

    def read_sample(
        self, position: int, reference: Any, request: Request, skips: list[Skip]
    ) -> tuple[DecodedSample, Sample, Any] | None:
        """Read and decode a sample or its first usable substitute; skipped ones are added to `skips`."""
        substitutes = itertools.islice(self.source.substitutes(reference, request), self.max_skips + 1)
        for candidate in itertools.chain([reference], substitutes):
            try:
                sample = self.source.read(candidate)
                return self.decoder.decode(sample, position, self.seed, request.size), sample, candidate
            except UnusableSampleError as error:
                skips.append(Skip(self.source.name(candidate), str(error)))
        return None


def stack_samples(
    samples: Sequence[DecodedSample], captions: list[str], positions: Sequence[int], embeddings: TextEmbeddings | None
) -> Batch:
    """Stack decoded samples and their captions to a batch."""
    batch = Batch(
        pixels=torch.stack([sample.pixels for sample in samples]),
        captions=captions,
        positions=torch.tensor(positions, dtype=torch.int64),
        micro_conditioning={
            key: torch.tensor([sample.micro_conditioning[key] for sample in samples], dtype=torch.float32)
            for key in samples[0].micro_conditioning
        },
        class_labels=None
        if samples[0].label is None
        else torch.tensor([sample.label for sample in samples], dtype=torch.int64),
    )
    return batch if embeddings is None else embeddings.add_to(batch)


def read_batches(
    reader: BatchReader, requests: Iterable[Request], num_workers: int, skipped: SkipBudget
) -> Generator[Batch, None, None]:
    """Read the requested batches in order; workers, if there are any, read ahead.

    Raises:
        ValueError: if more samples had to be skipped than `skipped` allows, or there is no usable substitute for one.
    """
    loader = DataLoader(
        reader,
        batch_size=None,
        sampler=requests,
        num_workers=num_workers,
        collate_fn=_as_it_is,
        pin_memory=torch.cuda.is_available(),
        worker_init_fn=_outlive_signals,
        prefetch_factor=PREFETCHED_BATCHES if num_workers else None,
        # A separate generator, so that reading does not consume numbers of the global one.
        generator=torch.Generator().manual_seed(0),
    )
    for batch, skips in loader:
        skipped.add(skips)
        yield checked(batch, skips)


def closed_at_exit(batches: Generator[Batch, None, None]) -> Generator[Batch, None, None]:
    """Yield the same batches; their workers are shut down properly even if an error keeps the generator alive."""
    _open_batches.add(batches)
    return batches


_open_batches: weakref.WeakSet[Generator[Batch, None, None]] = weakref.WeakSet()


@atexit.register
def _close_open_batches() -> None:
    for batches in list(_open_batches):
        batches.close()


def checked(batch: Batch | None, skips: Sequence[Skip]) -> Batch:
    """Return the batch.

    Raises:
        ValueError: if there is none, because there was no usable substitute for a sample.
    """
    if batch is None:
        raise ValueError(
            f"Found no usable image or clip in {len(skips)} tries; the last one, {skips[-1].name}, was skipped "
            f"because: {skips[-1].reason}."
        )
    return batch


def _as_it_is(reading: Any) -> Any:
    return reading


def _outlive_signals(worker: int) -> None:
    # A signal to all processes is handled by the main one, which saves a checkpoint and then ends its workers. If they
    # ended at once, torch would raise an error in the middle of that. A worker that is left behind ends by itself.
    with contextlib.suppress(ValueError):  # not in the main thread
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        if hasattr(signal, "SIGALRM"):  # Windows ends processes without a signal, and has no alarms
            signal.signal(signal.SIGALRM, signal.SIG_DFL)
            signal.signal(signal.SIGTERM, lambda number, frame: signal.alarm(SIGNAL_GRACE_SECONDS))
