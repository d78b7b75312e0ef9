# SPDX-License-Identifier: Apache-2.0
"""The meaning of the parts of a WebDataset sample, in the layout of CC12M: image or clip, caption, class, numbers."""

import json
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from ...recipe.data import DataRecipe
from ..file_kinds import CLIP_SUFFIXES, IMAGE_SUFFIXES
from ..reading import Request
from ..samples import Sample, class_of
from ..skip_budget import Skip, SkipBudget, UnusableSampleError
from ..text.caption_choice import Captions
from ..text.captions import clean_caption, clean_captions
from .files import ShardFiles
from .index import MAX_TEXT_BYTES, TarIndex, TarSample


class TarSamples:
    """Reads samples of shards: image or clip, caption, class and micro-conditioning.

    The caption is the text of .txt, or if there is none the field "caption" or "text" of .json; if the recipe's
    `caption_column` is neither "text" nor "txt", only that field of .json is used. The `other_caption_columns` are
    fields of .json. The image is the first of .jpg,
    .jpeg, .png, .webp …, or the file with the suffix `image_column`, if that is not "image". With any `video_column`,
    it is a clip instead of an image: the first of .mp4, .webm, .mkv, .mov …, .gif, .webp, .avif, .apng. The class is
    the number in the file with the suffix `label_column` (such as .cls), or that field of .json.
    """

    def __init__(self, recipe: DataRecipe):
        self.recipe = recipe

    def name(self, sample: TarSample) -> str:
        """Return the name of the sample for messages."""
        return sample.name

    def substitutes(self, sample: TarSample, request: Request) -> Sequence[TarSample]:
        """Return the samples that follow in the block."""
        return request.spares

    def read(self, sample: TarSample) -> Sample:
        """Read the sample, without decoding its image.

        Raises:
            UnusableSampleError: if a part is missing or damaged.
        """
        recipe = self.recipe
        suffixes = IMAGE_SUFFIXES if recipe.image_column == "image" else (recipe.image_column.lower(),)
        image = sample.find(*(suffixes if recipe.video_column is None else CLIP_SUFFIXES))
        if image is None:
            wanted = "image" if recipe.video_column is None else "clip, such as .mp4, .webm or .gif"
            raise UnusableSampleError(f"it has no {wanted} ({_listed(sample)})")
        fields = self._fields(sample)
        captions, others = self._captions(sample, fields)
        return Sample(sample.read(image), captions, fields, self._label(sample, fields), others)

    def captions(self, sample: TarSample) -> Captions:
        """Read the captions of a sample, without its image."""
        return self._captions(sample, self._fields(sample))

    def _fields(self, sample: TarSample) -> dict[str, Any]:
        part = sample.find("json")
        if part is None:
            return {}
        try:
            fields = json.loads(sample.read(part, MAX_TEXT_BYTES))
        except (ValueError, RecursionError) as error:
            raise UnusableSampleError(f"its .json cannot be read ({error})") from error
        if not isinstance(fields, dict):
            raise UnusableSampleError(
                f"its .json holds a {type(fields).__name__}; expected an object with names and values"
            )
        return fields

    def _captions(self, sample: TarSample, fields: dict[str, Any]) -> Captions:
        if self.recipe.caption is not None:
            return Captions(clean_caption(self.recipe.caption))
        others = {}
        for field in self.recipe.other_caption_columns:
            if field not in fields:
                raise UnusableSampleError(f"it has no field {field!r} in .json ({_listed(sample, fields)})")
            others[field] = _texts(fields, field)
        return Captions(self._main_captions(sample, fields), others)

    def _main_captions(self, sample: TarSample, fields: dict[str, Any]) -> str | list[str]:
        recipe = self.recipe
        named = recipe.caption_column not in ("text", "txt")
        text = None if named else sample.find("txt")
        if text is not None:
            try:
                return clean_caption(sample.read(text, MAX_TEXT_BYTES).decode("utf-8").strip())
            except UnicodeDecodeError as error:
                raise UnusableSampleError(f"its .txt is not UTF-8 ({error})") from error
        for field in [recipe.caption_column] if named else ["caption", "text"]:
            if field in fields:
                return _texts(fields, field)
        wanted = f"field {recipe.caption_column!r} in .json" if named else '.txt, nor "caption" or "text" in .json'
        raise UnusableSampleError(f"it has no {wanted} ({_listed(sample, fields)})")

    def _label(self, sample: TarSample, fields: dict[str, Any]) -> int | None:
        column = self.recipe.label_column
        if column is None:
            return None
        part = sample.find(column)
        label = fields.get(column) if part is None else sample.read(part, MAX_TEXT_BYTES).strip()
        if isinstance(label, bytes):
            text = label[:20].decode("ascii", "replace")
            label = int(text) if text.removeprefix("-").isdecimal() else text
        return class_of(label, f"its class, .{column} or that field of .json,")


def _texts(fields: dict[str, Any], field: str) -> str | list[str]:
    """Return the caption or captions in a field of .json, cleaned."""
    try:
        return clean_captions(fields[field])
    except ValueError as error:
        raise UnusableSampleError(f"field {field!r} of its .json: {error}") from error


def _listed(sample: TarSample, fields: dict[str, Any] | None = None) -> str:
    found = "it has " + _first([f".{part.suffix}" for part in sample.parts])
    return f"{found}, and in .json {_first(list(fields))}" if fields else found


def _first(names: Sequence[str]) -> str:
    shown = [clean_caption(name[:40]) for name in names[:12]]
    return ", ".join(shown if len(names) <= 12 else [*shown, "…"])


class ListedSamples:
    """All samples of shards by number, for data sets that are small enough to list.

    Raises:
        ValueError: if there are none, or more are damaged than `skipped` allows.
    """

    def __init__(self, recipe: DataRecipe, shards: Sequence[str], skipped: SkipBudget):
        self.content = TarSamples(recipe)
        self.files = ShardFiles()  # downloaded shards are kept as long as this object
        self.samples = [sample for index in indices_of(shards, self.files, skipped) for sample in index.samples]
        if not self.samples:
            raise ValueError(
                f"There are no samples in {', '.join(shards[:3])}; expected 000001.jpg, 000001.txt and so on."
            )

    def __len__(self) -> int:
        return len(self.samples)

    def name(self, number: int) -> str:
        """Return the name of the sample for messages."""
        return self.samples[number].name

    def read(self, number: int) -> Sample:
        """Return the sample, with its image still encoded."""
        return self.content.read(self.samples[number])

    def substitutes(self, number: int, request: Request) -> Iterable[int]:
        """Return the samples that follow."""
        return ((number + step) % len(self) for step in range(1, len(self)))


def indices_of(shards: Sequence[str], files: ShardFiles, skipped: SkipBudget) -> Iterator[TarIndex]:
    """Yield the index of each shard; damaged ones are counted."""
    for shard in shards:
        index = files.index(shard)
        if index.problem is not None:
            skipped.add([Skip(shard, index.problem)])
        yield index


def iterate_shard_captions(recipe: DataRecipe, shards: Sequence[str]) -> Iterator[str]:
    """Yield all captions of shards in order; samples without one are skipped, as in training."""
    for captions in _captions_in(recipe, shards):
        for texts in (captions.main, *captions.others.values()):
            yield from [texts] if isinstance(texts, str) else texts


def first_shard_captions(recipe: DataRecipe, shards: Sequence[str]) -> Iterator[str]:
    """Yield one main caption for each sample, the first of several; samples without one are skipped."""
    for captions in _captions_in(recipe, shards):
        yield captions.main if isinstance(captions.main, str) else next(iter(captions.main), "")


def _captions_in(recipe: DataRecipe, shards: Sequence[str]) -> Iterator[Captions]:
    files, skipped, content, count = ShardFiles(), SkipBudget(recipe.max_skipped_images), TarSamples(recipe), 0
    for index in indices_of(shards, files, skipped):
        for sample in index.samples:
            try:
                yield content.captions(sample)
            except UnusableSampleError as error:
                skipped.add([Skip(sample.name, str(error))])
        count += len(index.samples)
        files.retire(index.path, count)
