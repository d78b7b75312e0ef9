# SPDX-License-Identifier: Apache-2.0
"""Writing shards from a data set that `datasets` can stream, in the layout of img2dataset.

Training reads shards in sequence, from a disk or over the network, so a data set of any size can be trained on without
loading it completely. Shard k contains the records from k n to (k + 1) n - 1 of the data set, where n is the number of
records per shard, so that an interrupted command continues with the shards that are missing.
"""

import io
import itertools
import json
import logging
import os
import tarfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import datasets
from PIL import Image

from ...recipe.fields import COUNT, NOT_NEGATIVE, check_ranges
from ..file_kinds import CLIP_SUFFIXES, suffix_of
from ..images import FORMATS, known_formats, open_image, reasons_of_decoders
from ..samples import class_of
from ..skip_budget import Skip, SkipBudget, UnusableSampleError
from ..tables.hub import reasons_of_datasets
from ..text.captions import clean_captions

logger = logging.getLogger(__name__)

JPEG_QUALITY = 95
_SUFFIXES = {"JPEG": "jpg", "MPO": "jpg", "JPEG2000": "jp2", "TIFF": "tif"}  # of formats that have another name


@dataclass(frozen=True)
class ShardSource:
    """The records that are written, and in which form.

    Attributes:
        path: folder or data set on the Hub; its images or clips must be contained in it (parquet, WebDataset).
        config_name: configuration of the data set.
        split: which records.
        image_column: column with the images.
        video_column: column with clips, which are written instead of images.
        caption_column: column with the captions, one or several per record; None writes none.
        label_column: column with the classes; None writes none.
        short_side: images whose shorter side is longer are resized to it, in pixels; None keeps all.
        samples_per_shard: number of records per shard.
        first_shard: number of the first shard that is written; several machines can share the work.
        num_shards: number of shards; None for all that follow.
        max_skipped: number of unusable records after which writing fails.
    """

    path: str
    config_name: str | None = None
    split: str = "train"
    image_column: str = "image"
    video_column: str | None = None
    caption_column: str | None = None
    label_column: str | None = None
    short_side: int | None = None
    samples_per_shard: int = 1000
    first_shard: int = 0
    num_shards: int | None = None
    max_skipped: int = 100

    def __post_init__(self) -> None:
        counts = dict.fromkeys(("short_side", "samples_per_shard", "num_shards"), COUNT)
        check_ranges(self, {**counts, **dict.fromkeys(("first_shard", "max_skipped"), NOT_NEGATIVE)})
        if self.short_side is not None and self.video_column is not None:
            raise ValueError("`short_side` applies to images; clips are written as they are: omit it.")

    @property
    def media_column(self) -> str:
        """The column with the clips or images."""
        return self.image_column if self.video_column is None else self.video_column

    @property
    def columns(self) -> list[str]:
        """All columns that are read."""
        return [name for name in (self.media_column, self.caption_column, self.label_column) if name is not None]


def write_shards(source: ShardSource, folder: Path) -> int:
    """Write the shards that are not there yet: `00000.tar`, `00001.tar` and so on.

    Args:
        source: the records.
        folder: receives the shards; each appears when it is complete.

    Returns:
        The number of samples that were written.

    Raises:
        ValueError: the data set cannot be read, lacks a column, or has too many unusable records.
        OSError: it cannot be downloaded at the moment, or the disk is full.
    """
    folder.mkdir(parents=True, exist_ok=True)
    last = None if source.num_shards is None else source.first_shard + source.num_shards
    numbers = itertools.islice(itertools.count(), source.first_shard, last)
    missing = itertools.dropwhile(lambda number: (folder / shard_name(number)).exists(), numbers)
    first = next(missing, None)
    if first is None:
        return 0
    skipped, total = SkipBudget(source.max_skipped), 0
    records = read_records(source, first * source.samples_per_shard)
    for number in itertools.chain([first], missing):
        part = itertools.islice(records, source.samples_per_shard)
        written = _write_shard(folder / shard_name(number), number, part, source, skipped)
        if written is None:
            break
        logger.info("%s: %d samples.", shard_name(number), written)
        total += written
    return total


def shard_name(number: int) -> str:
    """Return the file name of a shard."""
    return f"{number:05d}.tar"


def read_records(source: ShardSource, start: int) -> Iterator[dict[str, Any]]:
    """Yield the records from number `start` on; raises the errors of `write_shards`."""
    with reasons_of_datasets(source.path):
        yield from open_stream(source).skip(start)


def open_stream(source: ShardSource) -> datasets.IterableDataset:
    """Open the records as a stream, with images or clips that are not decoded.

    Raises:
        ValueError: a column is missing; the message lists those there are.
    """
    stream = datasets.load_dataset(source.path, source.config_name, split=source.split, streaming=True)
    known = stream.column_names or list(next(iter(stream)))
    missing = [name for name in source.columns if name not in known]
    if missing:
        raise ValueError(f"it has no column {', '.join(map(repr, missing))}; it has {', '.join(map(repr, known))}")
    kind = datasets.Image if source.video_column is None else datasets.Video
    features = stream.features or {}
    if isinstance(features.get(source.media_column), (datasets.Image, datasets.Video)):
        stream = stream.cast_column(source.media_column, kind(decode=False))
    return stream.select_columns(source.columns)


def _write_shard(
    path: Path, number: int, records: Iterator[dict[str, Any]], source: ShardSource, skipped: SkipBudget
) -> int | None:
    """Write a shard, and return the number of its samples; None, without a shard, if there are no records."""
    beside, written, place = path.with_suffix(".partial"), 0, -1
    try:
        with tarfile.open(beside, "w") as tar:
            for place, record in enumerate(records):
                try:
                    parts = dict(sample_parts(record, source))
                except UnusableSampleError as error:
                    skipped.add([Skip(f"record {number * source.samples_per_shard + place}", str(error))])
                    continue
                for suffix, content in parts.items():
                    member = tarfile.TarInfo(f"{number:05d}{place:05d}.{suffix}")
                    member.size = len(content)
                    tar.addfile(member, io.BytesIO(content))
                written += 1
        if place < 0:
            return None
        os.replace(beside, path)
    finally:
        beside.unlink(missing_ok=True)
    return written


def sample_parts(record: Mapping[str, Any], source: ShardSource) -> Iterator[tuple[str, bytes]]:
    """Yield suffix and content of the files of a sample.

    Raises:
        UnusableSampleError: the image cannot be decoded, or something is missing.
    """
    media = record[source.media_column]
    content = media.get("bytes") if isinstance(media, Mapping) else media
    if not isinstance(content, bytes):
        raise UnusableSampleError(
            f"column {source.media_column!r} does not contain the file itself, as parquet and WebDataset files do"
        )
    if source.video_column is None:
        yield image_file(content, source.short_side)
    else:
        suffix = suffix_of(str(media.get("path") or "")) if isinstance(media, Mapping) else ""
        yield (suffix if suffix in CLIP_SUFFIXES else "mp4"), content
    if source.caption_column is not None:
        try:
            captions = clean_captions(record[source.caption_column])
        except ValueError as error:
            raise UnusableSampleError(f"column {source.caption_column!r}: {error}") from error
        if isinstance(captions, str):
            yield "txt", captions.encode()
        else:
            yield "json", json.dumps({"caption": captions}).encode()
    if source.label_column is not None:
        yield "cls", str(class_of(record[source.label_column], f"its class, column {source.label_column!r},")).encode()


def image_file(content: bytes, short_side: int | None) -> tuple[str, bytes]:
    """Return suffix and content of an image file, which is the given one unless it has to be made smaller.

    Args:
        content: the file.
        short_side: length in pixels to which a longer shorter side is reduced, by area averages.

    Raises:
        UnusableSampleError: it is no image, or is damaged.
    """
    with reasons_of_decoders(), Image.open(io.BytesIO(content), formats=known_formats(FORMATS)) as header:
        kind, shorter = cast(str, header.format), min(header.size)
    if short_side is None or shorter <= short_side:
        return _SUFFIXES.get(kind, kind.lower()), content
    image = open_image(content)
    scale = short_side / min(image.size)
    size = (max(short_side, round(scale * image.width)), max(short_side, round(scale * image.height)))
    smaller = io.BytesIO()
    image.resize(size, Image.Resampling.BOX, reducing_gap=None).save(smaller, "JPEG", quality=JPEG_QUALITY)
    return "jpg", smaller.getvalue()
