# SPDX-License-Identifier: Apache-2.0
"""Batches of images with similar aspect ratios: the bucket of each image, and the order of the batches.

All images of an optimizer step, on all processes, are of one bucket. The bucket of each step is the one that is
furthest behind its share of the images, so that at any time all images were seen about equally often. Within a bucket,
the images are in an order that is shuffled anew each time all of them were used. The order depends only on the seed,
the sizes of the images and the number of images per step; a run resumes in the middle of it.
"""

import io
import logging
import math
from collections.abc import Iterator, Sequence
from pathlib import Path

from diffusers.utils.logging import tqdm
from PIL import Image

from ...pyramid import Size
from ...rgb_images import upright_size
from ..seeds import derive_seed
from .images import FORMATS, MAX_FILE_BYTES, known_formats, reasons_of_decoders
from .local_files import check_file
from .order import BatchOrder, ShuffledNumbers
from .reading import NumberedSource, Request
from .skip_budget import UnusableSampleError

logger = logging.getLogger(__name__)

_BUCKET_STREAM = 104  # distinct from the streams of samples


def nearest_bucket(size: Size, buckets: Sequence[Size]) -> int:
    """Return the index of the bucket whose aspect ratio is closest to that of an image, the first of several.

    Args:
        size: height and width of the image.
        buckets: heights and widths.
    """
    ratio = math.log(size[0] / size[1])
    return min(range(len(buckets)), key=lambda index: abs(math.log(buckets[index][0] / buckets[index][1]) - ratio))


def stored_size(source: bytes | str | Path) -> Size:
    """Return height and width of an encoded image, upright, from its header.

    Raises:
        UnusableSampleError: if it cannot be read.
    """
    if not isinstance(source, bytes):
        check_file(Path(source), MAX_FILE_BYTES)
    file = io.BytesIO(source) if isinstance(source, bytes) else Path(source)
    with reasons_of_decoders(), Image.open(file, formats=known_formats(FORMATS)) as image:
        return upright_size(image)


def sort_into_buckets(source: NumberedSource, buckets: Sequence[Size], default: Size) -> list[list[int]]:
    """Return the numbers of the images of each bucket.

    Args:
        source: the stored images. Those that cannot be read are put into the default bucket, and skipped when they
            are needed.
        buckets: heights and widths.
        default: one of them.
    """
    members: list[list[int]] = [[] for _ in buckets]
    for number in tqdm(range(len(source)), desc="sizes of images", disable=len(source) < 10_000):
        try:
            size = stored_size(source.read(number).image)
        except UnusableSampleError:
            size = default
        members[nearest_bucket(size, buckets)].append(number)
    counts = ", ".join(
        f"{height} x {width}: {len(numbers)}" for (height, width), numbers in zip(buckets, members, strict=True)
    )
    logger.info("Images of each aspect-ratio bucket (height x width): %s.", counts)
    return members


class BucketRequests:
    """The micro-batches of one process, each of one bucket; see the module's description.

    Args:
        members: numbers of the images of each bucket.
        buckets: height and width of each bucket.
        order: how the positions of a step are distributed.
        start_step: the first optimizer step.
    """

    def __init__(
        self, members: Sequence[Sequence[int]], buckets: Sequence[Size], order: BatchOrder, start_step: int = 0
    ):
        self.members, self.buckets, self.order, self.start_step = members, buckets, order, start_step

    def __iter__(self) -> Iterator[Request]:
        order, steps = self.order, bucket_of_steps([len(numbers) for numbers in self.members])
        shuffled = [
            ShuffledNumbers(len(numbers), derive_seed(order.seed, _BUCKET_STREAM, bucket))
            for bucket, numbers in enumerate(self.members)
        ]
        for _ in range(self.start_step):
            next(steps)
        bucket = num_before = 0
        step = self.start_step - 1
        for number, positions in enumerate(order.micro_batches(self.start_step)):
            if number % order.accumulation == 0:
                bucket, num_before = next(steps)
                step += 1
            first = (num_before - step) * order.places_per_step
            members, numbers = self.members[bucket], shuffled[bucket]
            chosen = [members[numbers.number_at(first + position)] for position in positions]
            yield Request(positions, chosen, (), self.buckets[bucket])


def bucket_of_steps(counts: Sequence[int]) -> Iterator[tuple[int, int]]:
    """Yield for each optimizer step its bucket, and the number of earlier steps of that bucket.

    After n steps, a bucket with the fraction f of the images has had about n f steps.

    Args:
        counts: number of images of each bucket.
    """
    total, used = sum(counts), [0] * len(counts)
    due = [0] * len(counts)  # counts[b] * steps - total * used[b]
    filled = [bucket for bucket, count in enumerate(counts) if count]
    while True:
        for bucket in filled:
            due[bucket] += counts[bucket]
        chosen = max(filled, key=due.__getitem__)
        yield chosen, used[chosen]
        due[chosen] -= total
        used[chosen] += 1
