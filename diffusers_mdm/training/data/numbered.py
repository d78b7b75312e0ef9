# SPDX-License-Identifier: Apache-2.0
"""Images or clips with random access by number; decoded once and kept in memory if all of them fit."""

from __future__ import annotations

import math
import os
from collections.abc import Generator, Iterator, Sequence
from typing import Any

import psutil  # type: ignore[import-untyped]
import torch

from .batch import Batch
from .order import BatchOrder, PositionedBatches
from .reading import BatchReader, NumberedSource, Request, checked, closed_at_exit, read_batches
from .samples import DecodedSample, SampleDecoder
from .skip_budget import Skip, SkipBudget
from .text.caption_choice import CaptionChoice, Captions
from .text.features import TextEmbeddings

# Decoded images of a stage are kept in memory up to this share of it, divided by the processes of the machine, and in
# the memory of a GPU up to this share of what is free there.
_MEMORY_SHARE, _GPU_SHARE = 1 / 16, 1 / 8
_SMALL_BYTES = 512 * 2**20  # they are always kept up to this size


def cache_limit_bytes() -> int:
    """Return up to which size the decoded images of a stage are kept in memory."""
    processes = max(int(os.environ.get("LOCAL_WORLD_SIZE", "1")), 1)
    return max(int(psutil.virtual_memory().total * _MEMORY_SHARE / processes), _SMALL_BYTES)


class CaptionedImages:
    """The images or clips of one split at one resolution, by number.

    Args:
        source: the stored samples.
        decoder: decodes them.
        skipped: counts samples that cannot be used.
        embeddings: precomputed features of their captions.
    """

    def __init__(
        self,
        source: NumberedSource,
        decoder: SampleDecoder,
        skipped: SkipBudget,
        embeddings: TextEmbeddings | None = None,
    ):
        self.source, self.decoder, self.skipped, self.embeddings = source, decoder, skipped, embeddings
        shape = (len(source), *decoder.shape)
        self.kept = (
            None
            if decoder.is_random or len(decoder.buckets) > 1 or math.prod(shape) > cache_limit_bytes()
            else KeptSamples(shape, decoder.captions)
        )

    def __len__(self) -> int:
        return len(self.source)

    def reader(self, seed: int) -> BatchReader:
        """Return a reader for samples that are not in memory; `seed` is for random crops, frames and captions."""
        return BatchReader(self.source, self.decoder, seed, self.skipped.limit, self.embeddings)

    def load(self, numbers: Sequence[int], positions: Sequence[int] | None = None, seed: int = 0) -> Batch:
        """Load samples as a batch.

        Args:
            numbers: their numbers.
            positions: position of each in the stream, on which random choices depend; by default its number.
            seed: seed of these choices.

        Raises:
            ValueError: if too many samples had to be skipped.
        """
        positions = numbers if positions is None else positions
        if self.kept is None:
            reading = self.reader(seed)[Request(list(positions), list(numbers))]
            self.skipped.add(reading.skips)
            return checked(*reading)
        self.decode(numbers)
        batch = self.kept.batch(numbers, positions, seed)
        return batch if self.embeddings is None else self.embeddings.add_to(batch)

    def decode(self, numbers: Sequence[int]) -> None:
        """Decode samples that are to be kept in memory and are not there yet.

        Raises:
            ValueError: if too many samples had to be skipped.
        """
        if self.kept is None:
            return
        reader = self.reader(0)
        for number in numbers:
            if self.kept.captions[number] is None:
                skips: list[Skip] = []
                found = reader.read_sample(number, number, Request([number], [number]), skips)
                self.skipped.add(skips)
                if found is None:
                    checked(None, skips)
                else:
                    self.kept.put(number, found[0], found[1].all_captions)


class KeptSamples:
    """Decoded samples in one tensor of shape (N, 3, …), from which a batch is taken by a single indexing operation.

    Args:
        shape: the shape of all samples together.
        choice: chooses the caption of a sample that has several.
    """

    def __init__(self, shape: Sequence[int], choice: CaptionChoice):
        self.choice = choice
        self.pixels = torch.empty(*shape, dtype=torch.uint8)
        self.captions: list[Captions | None] = [None] * len(self.pixels)  # None: not decoded yet
        self.labels: torch.Tensor | None = None
        self.micro_conditioning: dict[str, torch.Tensor] = {}

    def put(self, number: int, decoded: DecodedSample, captions: Captions) -> None:
        """Store a decoded sample."""
        self.pixels[number] = decoded.pixels
        for key, value in decoded.micro_conditioning.items():
            self.micro_conditioning.setdefault(key, torch.zeros(len(self.pixels)))[number] = value
        if decoded.label is not None:
            if self.labels is None:
                self.labels = torch.zeros(len(self.pixels), dtype=torch.int64)
            self.labels[number] = decoded.label
        self.captions[number] = captions

    def move_to(self, device: torch.device) -> None:
        """Move the samples to a device, from which all later batches come."""
        self.pixels = self.pixels.to(device)
        self.labels = None if self.labels is None else self.labels.to(device)
        self.micro_conditioning = {key: values.to(device) for key, values in self.micro_conditioning.items()}

    def batch(self, numbers: Sequence[int], positions: Sequence[int], seed: int) -> Batch:
        """Return stored samples as a batch without text features."""
        chosen = torch.tensor(numbers, dtype=torch.int64).to(self.pixels.device)
        return Batch(
            pixels=self.pixels[chosen],
            captions=[
                self.choice.choose(self.captions[number] or Captions(""), seed, position)
                for number, position in zip(numbers, positions, strict=True)
            ],
            positions=torch.tensor(positions, dtype=torch.int64),
            micro_conditioning={key: values[chosen] for key, values in self.micro_conditioning.items()},
            class_labels=None if self.labels is None else self.labels[chosen],
        )


class ShuffledImages:
    """Samples for training, in an order that depends only on the seed and the position.

    Attributes:
        images: the samples.
        skipped: counts samples that cannot be used.
    """

    def __init__(self, images: CaptionedImages):
        self.images, self.skipped = images, images.skipped
        images.decode(range(len(images)))
        self._members: list[list[int]] = []
        if len(images.decoder.buckets) > 1:
            from .buckets import sort_into_buckets

            self._members = sort_into_buckets(images.source, images.decoder.buckets, images.decoder.size)

    def prefer(self, device: torch.device) -> None:
        """Keep the samples in the memory of a GPU if they are in memory and take little of what is free there."""
        kept = self.images.kept
        if kept is not None and device.type == "cuda":
            free, _ = torch.cuda.mem_get_info(device)
            if kept.pixels.nbytes <= free * _GPU_SHARE:
                kept.move_to(device)

    def batches(self, order: BatchOrder, start_step: int = 0, num_workers: int = 0) -> Generator[Batch, None, None]:
        """Yield the micro-batches of this process from optimizer step `start_step` on, without end.

        If samples are kept in memory, the `num_workers` workers are not started.
        """
        if self._members:
            from .buckets import BucketRequests

            bucketed = BucketRequests(self._members, self.images.decoder.buckets, order, start_step)
            return closed_at_exit(read_batches(self.images.reader(order.seed), bucketed, num_workers, self.skipped))
        places = PositionedBatches(len(self.images), order, start_step)
        if self.images.kept is not None:
            return self._kept_batches(places, order.seed)
        requests = _Requests(places)
        return closed_at_exit(read_batches(self.images.reader(order.seed), requests, num_workers, self.skipped))

    def _kept_batches(self, places: PositionedBatches, seed: int) -> Generator[Batch, None, None]:
        for pairs in places:
            yield self.images.load([number for _, number in pairs], [place for place, _ in pairs], seed)


class _Requests:
    """The requests for the samples at the positions of an order."""

    def __init__(self, places: PositionedBatches):
        self.places = places

    def __iter__(self) -> Iterator[Request]:
        for pairs in self.places:
            references: list[Any] = [number for _, number in pairs]
            yield Request([place for place, _ in pairs], references)
