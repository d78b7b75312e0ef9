# SPDX-License-Identifier: Apache-2.0
"""What the parts of a WebDataset sample mean, in the layout of CC12M: picture or clip, caption, class, numbers."""

import json
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from ...recipe.data import DataRecipe
from ..images import UnusableSampleError
from ..reading import Request
from ..samples import Sample
from ..skip_budget import Skip, SkipBudget
from .files import ShardFiles
from .index import TarIndex, TarSample

IMAGE_SUFFIXES = ("jpg", "jpeg", "png", "webp", "gif", "bmp", "tif", "tiff", "avif", "jp2")
CLIP_SUFFIXES = (
    *("mp4", "webm", "mkv", "mov", "avi", "m4v", "mpg", "mpeg", "ts", "ogv", "flv", "wmv"),
    *("gif", "webp", "avif", "apng"),
)


class TarSamples:
    """How samples of shards are read: picture or clip, caption, class and micro-conditions.

    The caption is the text of .txt, or without one the field "caption" or "text" of .json; if the recipe's
    `caption_column` is neither "text" nor "txt", it is that field of .json and nothing else. The picture is the first
    of .jpg, .jpeg, .png, .webp …, or the file with the suffix `image_column`, if that is not "image". With a
    `video_column`, whatever its name, it is a clip in place of the picture: the first of .mp4, .webm, .mkv, .mov …,
    .gif, .webp, .avif, .apng. The class is the number in the file with the suffix `label_column` (such as .cls), or
    that field of .json.
    """

    def __init__(self, recipe: DataRecipe):
        self.recipe = recipe

    def name(self, sample: TarSample) -> str:
        """How a message calls the sample."""
        return sample.name

    def substitutes(self, sample: TarSample, request: Request) -> Sequence[TarSample]:
        """The samples that follow in the block."""
        return request.spares

    def read(self, sample: TarSample) -> Sample:
        """The sample, with its picture still encoded.

        Raises:
            UnusableSampleError: if a part is missing or broken.
        """
        recipe = self.recipe
        suffixes = IMAGE_SUFFIXES if recipe.image_column == "image" else (recipe.image_column.lower(),)
        image = sample.find(*(suffixes if recipe.video_column is None else CLIP_SUFFIXES))
        if image is None:
            wanted = "picture" if recipe.video_column is None else "clip, such as .mp4, .webm or .gif"
            raise UnusableSampleError(f"it has no {wanted} ({_listed(sample)})")
        fields = self._fields(sample)
        return Sample(sample.read(image), self._captions(sample, fields), fields, self._label(sample, fields))

    def captions(self, sample: TarSample) -> str | list[str]:
        """The caption of a sample, or its captions, without its picture."""
        return self._captions(sample, self._fields(sample))

    def _fields(self, sample: TarSample) -> dict[str, Any]:
        part = sample.find("json")
        if part is None:
            return {}
        try:
            fields = json.loads(sample.read(part))
        except (ValueError, RecursionError) as error:
            raise UnusableSampleError(f"its .json cannot be read ({error})") from error
        if not isinstance(fields, dict):
            raise UnusableSampleError(f"its .json holds a {type(fields).__name__}, expected names and values")
        return fields

    def _captions(self, sample: TarSample, fields: dict[str, Any]) -> str | list[str]:
        recipe = self.recipe
        if recipe.caption is not None:
            return recipe.caption
        named = recipe.caption_column not in ("text", "txt")
        text = None if named else sample.find("txt")
        if text is not None:
            try:
                return sample.read(text).decode("utf-8").strip()
            except UnicodeDecodeError as error:
                raise UnusableSampleError(f"its .txt is not UTF-8 ({error})") from error
        for field in [recipe.caption_column] if named else ["caption", "text"]:
            if field in fields:
                return _as_captions(fields[field], field)
        wanted = f"field {recipe.caption_column!r} in .json" if named else '.txt, nor "caption" or "text" in .json'
        raise UnusableSampleError(f"it has no {wanted} ({_listed(sample, fields)})")

    def _label(self, sample: TarSample, fields: dict[str, Any]) -> int | None:
        column = self.recipe.label_column
        if column is None:
            return None
        part = sample.find(column)
        label = fields.get(column) if part is None else sample.read(part).strip()
        try:
            if isinstance(label, (int, bytes)):
                return int(label)
        except ValueError:
            pass
        raise UnusableSampleError(f"its class, .{column} or that field of .json, is {label!r}, expected an integer")


def _as_captions(value: Any, field: str) -> str | list[str]:
    if value is None:
        return ""
    if isinstance(value, list) and all(isinstance(entry, str) for entry in value):
        return value
    if not isinstance(value, str):
        raise UnusableSampleError(f"field {field!r} of its .json must be text, got {value!r}")
    return value


def _listed(sample: TarSample, fields: dict[str, Any] | None = None) -> str:
    found = "it has " + ", ".join(f".{part.suffix}" for part in sample.parts)
    return f"{found}, and in .json {', '.join(fields)}" if fields else found


class ListedSamples:
    """All samples of some shards by number, for sets that are small enough to list.

    Raises:
        ValueError: if there are none, or more is broken than `skipped` allows.
    """

    def __init__(self, recipe: DataRecipe, shards: Sequence[str], skipped: SkipBudget):
        self.content = TarSamples(recipe)
        self.files = ShardFiles()  # fetched ones stay as this object
        self.samples = [sample for index in indices_of(shards, self.files, skipped) for sample in index.samples]
        if not self.samples:
            raise ValueError(
                f"There are no samples in {', '.join(shards[:3])}; expected 000001.jpg, 000001.txt and so on."
            )

    def __len__(self) -> int:
        return len(self.samples)

    def name(self, number: int) -> str:
        """How a message calls the sample."""
        return self.samples[number].name

    def read(self, number: int) -> Sample:
        """The sample, with its picture still encoded."""
        return self.content.read(self.samples[number])

    def substitutes(self, number: int, request: Request) -> Iterable[int]:
        """The samples that follow."""
        return ((number + step) % len(self) for step in range(1, len(self)))


def indices_of(shards: Sequence[str], files: ShardFiles, skipped: SkipBudget) -> Iterator[TarIndex]:
    """What each shard holds, in turn; broken ones are counted."""
    for shard in shards:
        index = files.index(shard)
        if index.problem is not None:
            skipped.add([Skip(shard, index.problem)])
        yield index


def iterate_shard_captions(recipe: DataRecipe, shards: Sequence[str]) -> Iterator[str]:
    """All captions of shards in their order; samples without one are passed over, as training does."""
    files, skipped, content, count = ShardFiles(), SkipBudget(recipe.max_skipped_images), TarSamples(recipe), 0
    for index in indices_of(shards, files, skipped):
        for sample in index.samples:
            try:
                captions = content.captions(sample)
            except UnusableSampleError as error:
                skipped.add([Skip(sample.name, str(error))])
                continue
            yield from [captions] if isinstance(captions, str) else captions
        count += len(index.samples)
        files.retire(index.path, count)
