# SPDX-License-Identifier: Apache-2.0
"""The splits of a data set in a folder or on the Hub: columns of captions, classes, and encoded images or clips."""

import contextlib
import itertools
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import datasets

from ...recipe.data import TableData
from ..local_files import AllowedFolders
from ..reading import Request
from ..samples import Sample, class_of
from ..skip_budget import UnusableSampleError
from ..text.caption_choice import Captions
from ..text.captions import clean_caption, clean_captions
from .captioned_folder import LABEL_COLUMN
from .folders import open_folder
from .hub import load_with_datasets, reasons_of_datasets

CAPTIONS_AT_A_TIME = 10_000


def load_captioned_split(recipe: TableData, split: str) -> datasets.Dataset:
    """Open one split and check the columns that training reads, without decoding their contents.

    Raises:
        ValueError: if the data set, the split or a column does not exist, is damaged or has a wrong type; the message
            lists what there is.
    """
    records = _open_split(recipe, split)
    _check_column(records, recipe, recipe.media_column)
    if recipe.caption is None:
        for column in recipe.caption_columns:
            _check_column(records, recipe, column)
            _check_captions(records, recipe, column)
    if recipe.label_column is not None:
        _check_column(records, recipe, recipe.label_column)
        _check_labels(records, recipe, recipe.label_column)
    if not len(records):
        raise ValueError(f"Split {split!r} of {recipe.path} has no records.")
    if recipe.video_column is not None:
        return _with_encoded_clips(records, recipe, recipe.video_column)
    return _with_encoded_images(records, recipe, recipe.image_column)


def load_all_splits(recipe: TableData) -> dict[str, datasets.Dataset]:
    """Load all splits of a data set, by name, with all their columns.

    Raises:
        ValueError: if there is no such data set, or it is damaged.
    """
    folder = open_folder(Path(recipe.path), recipe) if Path(recipe.path).is_dir() else None
    if folder is not None:
        return {split: folder.load(split) for split in folder.counts}
    try:
        return dict(load_with_datasets(recipe.path, recipe.config_name))
    except FileNotFoundError as error:
        raise ValueError(
            f"{recipe.path} is neither a folder with images nor a data set on the Hub: {error}"
        ) from error


def own_files(recipe: TableData) -> AllowedFolders:
    """Return the folders in which the files that a data set names may be."""
    path = Path(recipe.path)
    return AllowedFolders.of_folder(path) if path.is_dir() else AllowedFolders.of_hub()


def _open_split(recipe: TableData, split: str) -> datasets.Dataset:
    path = recipe.path
    folder = open_folder(Path(path), recipe) if Path(path).is_dir() else None
    if folder is not None:
        if split not in folder.counts:
            raise ValueError(
                f"{path} has no split {split!r}; it has {', '.join(folder.counts)}. (docs/training/data.md explains "
                f"how splits are determined.)"
            )
        return folder.load(split)
    kind = "images" if recipe.video_column is None else "clips, with their captions beside them,"
    try:
        splits = load_with_datasets(path, recipe.config_name)
    except FileNotFoundError as error:
        raise ValueError(
            f"{path} is neither a folder with parquet files or {kind} nor a data set on the Hub: {error}"
        ) from error
    if split not in splits:
        raise ValueError(f"{path} has no split {split!r}; it has {', '.join(splits)}.")
    return splits[split]


def _with_encoded_images(records: datasets.Dataset, recipe: TableData, column: str) -> datasets.Dataset:
    """Return the split with its image column cast to `{"bytes", "path"}`."""
    feature = records.features[column]
    is_struct = isinstance(feature, dict) and set(feature) == {"bytes", "path"}
    dtype = getattr(feature, "dtype", None)
    if not (isinstance(feature, datasets.Image) or is_struct or dtype in ("binary", "large_binary", "string")):
        raise ValueError(
            f"Column {column!r} of {recipe.path} must contain images, as Image, as the bytes of files (binary) or "
            f"as paths (string); it contains {feature}."
        )
    with reasons_of_datasets(recipe.path):
        return records.cast_column(column, datasets.Image(decode=False))


def _with_encoded_clips(records: datasets.Dataset, recipe: TableData, column: str) -> datasets.Dataset:
    """Return the split with its clip column cast to bytes, or to `{"bytes", "path"}`."""
    feature = records.features[column]
    if isinstance(feature, datasets.Video):
        return records.cast_column(column, datasets.Video(decode=False))
    if isinstance(feature, datasets.Image):  # animated images
        return records.cast_column(column, datasets.Image(decode=False))
    if isinstance(feature, dict) and set(feature) == {"bytes", "path"}:
        return records
    if getattr(feature, "dtype", None) not in ("binary", "large_binary"):
        raise ValueError(
            f"Column {column!r} of {recipe.path} must contain clips, as the bytes of files (binary) or as Video; "
            f"it contains {feature}."
        )
    return records


def _check_column(records: datasets.Dataset, recipe: TableData, column: str) -> None:
    if column in records.column_names:
        return
    hint = ""
    if column == recipe.caption_column:
        kind = "image" if recipe.video_column is None else "clip"
        hint = (
            f" Give the captions of a folder of {kind}s in a file 1.txt beside each {kind} 1.*, or in a "
            f"metadata.jsonl or metadata.csv with the columns `file_name` and {column!r}; or give one caption for "
            f"all by `data.caption` (--instance_prompt)."
        )
    elif column == recipe.media_column:
        hint = " Name the column by `data.image_column` (--image_column) or `data.video_column` (--video_column)."
    elif column in recipe.other_caption_columns:
        hint = " `data.other_caption_columns` (--other_caption_columns) names columns with further captions."
    elif column == LABEL_COLUMN:
        hint = (
            " The classes of a folder of images are its subfolders, all at the same depth, or that column of a "
            "metadata file."
        )
    raise ValueError(f"{recipe.path} has no column {column!r}; it has {', '.join(records.column_names)}.{hint}")


def _check_captions(records: datasets.Dataset, recipe: TableData, column: str) -> None:
    feature = records.features[column]
    feature = getattr(feature, "feature", feature)  # the type of a list's entries
    if getattr(feature, "dtype", None) not in ("string", "large_string"):
        raise ValueError(
            f"Column {column!r} of {recipe.path} must contain texts, or lists of texts of which one is used per "
            f"epoch; it contains {records.features[column]}."
        )


def _check_labels(records: datasets.Dataset, recipe: TableData, column: str) -> None:
    numbered = [name for name, feature in records.features.items() if _holds_whole_numbers(feature)]
    if column not in numbered:
        raise ValueError(
            f"Column {column!r} of {recipe.path} must contain classes, integers with or without names "
            f"(ClassLabel); it contains {records.features[column]}. Columns with integers: "
            f"{', '.join(numbered) or 'none'}."
        )


def _holds_whole_numbers(feature: Any) -> bool:
    return str(getattr(feature, "dtype", "")).startswith(("int", "uint"))


class SplitRecords:
    """The samples of one split, by number.

    Args:
        records: from `load_captioned_split`.
        recipe: names the columns to read.
        name: name of the split, for messages.
        extra_columns: further columns to pass on, if they exist (micro-conditioning).
    """

    def __init__(self, records: datasets.Dataset, recipe: TableData, name: str, extra_columns: Sequence[str] = ()):
        self.recipe, self.split = recipe, name
        self.allowed = own_files(recipe)
        self.extra_columns = [column for column in extra_columns if column in records.column_names]
        wanted = {recipe.media_column, *self.extra_columns}
        if recipe.caption is None:
            wanted.update(recipe.caption_columns)
        if recipe.label_column is not None:
            wanted.add(recipe.label_column)
        self.records = records.select_columns([column for column in records.column_names if column in wanted])

    def __len__(self) -> int:
        return len(self.records)

    def name(self, number: int) -> str:
        """Return the name of the sample for messages."""
        return f"record {number} of {self.recipe.path} ({self.split})"

    def read(self, number: int) -> Sample:
        """Read the sample, without decoding its image or clip.

        Raises:
            UnusableSampleError: if it has none, or one outside the data set.
        """
        try:
            values = self.records[number]
        except UnicodeDecodeError as error:
            raise UnusableSampleError(f"one of its texts is not UTF-8 ({error.reason})") from error
        kind = "image" if self.recipe.video_column is None else "clip"
        image = encoded_file(values[self.recipe.media_column], self.allowed, kind)
        fields = {column: values[column] for column in self.extra_columns}
        label = None if self.recipe.label_column is None else class_of(values[self.recipe.label_column])
        captions, others = captions_of(values, self.recipe)
        return Sample(image, captions, fields, label, others)

    def substitutes(self, number: int, request: Request) -> Iterator[int]:
        """Return the samples that follow, so that substitutes do not depend on the batch."""
        return ((number + step) % len(self) for step in range(1, len(self)))


def encoded_file(cell: Any, allowed: AllowedFolders, kind: str = "image") -> bytes | Path:
    """Return the bytes or the file of an undecoded cell in a column of images or clips.

    Args:
        cell: bytes, or `{"bytes", "path"}`.
        allowed: the folders in which the file may be.
        kind: what the cell contains, for messages.

    Raises:
        UnusableSampleError: if there is neither, or the file is outside the data set.
    """
    if isinstance(cell, bytes):
        return cell
    if cell is None or (cell.get("bytes") is None and not cell.get("path")):
        raise UnusableSampleError(f"it has no {kind}")
    if cell.get("bytes") is not None:
        return bytes(cell["bytes"])
    if "://" in cell["path"]:
        raise UnusableSampleError(f"its {kind} is not in the data set, but at {cell['path']}; download it first")
    return allowed.find(cell["path"])


def captions_of(values: dict[str, Any], recipe: TableData) -> Captions:
    """Return a record's captions, cleaned; a missing caption is the empty one.

    Raises:
        UnusableSampleError: if one is not text.
    """
    if recipe.caption is not None:
        return Captions(clean_caption(recipe.caption))
    try:
        main, *others = (clean_captions(values[column]) for column in recipe.caption_columns)
    except ValueError as error:
        raise UnusableSampleError(str(error)) from error
    return Captions(main, dict(zip(recipe.other_caption_columns, others, strict=True)))


def iterate_captions(records: datasets.Dataset, recipe: TableData) -> Iterator[str]:
    """Yield all captions of a split in order, including all entries of lists, column by column; what is not text is
    skipped.
    """
    if recipe.caption is not None:
        yield clean_caption(recipe.caption)
        return
    for column in recipe.caption_columns:
        for captions in _cleaned_cells(records, column):
            yield from [captions] if isinstance(captions, str) else captions


def first_captions(records: datasets.Dataset, recipe: TableData) -> Iterator[str]:
    """Yield one main caption for each record, the first of several, "" if it has none; what is not text is skipped."""
    if recipe.caption is not None:
        yield from itertools.repeat(clean_caption(recipe.caption), len(records))
        return
    for captions in _cleaned_cells(records, recipe.caption_column):
        yield captions if isinstance(captions, str) else next(iter(captions), "")


def _cleaned_cells(records: datasets.Dataset, column: str) -> Iterator[str | list[str]]:
    """Yield the captions of each record in a column."""
    only = records.select_columns([column])
    for start in range(0, len(records), CAPTIONS_AT_A_TIME):
        yield from map(clean_captions, _cells(only, column, range(start, min(start + CAPTIONS_AT_A_TIME, len(only)))))


def _cells(records: datasets.Dataset, column: str, numbers: range) -> Iterator[Any]:
    """Return values of a column; if a text is not UTF-8, they are read one by one, without it."""
    try:
        yield from records[numbers.start : numbers.stop][column]
    except UnicodeDecodeError:
        for number in numbers:
            with contextlib.suppress(UnicodeDecodeError):
                yield records[number][column]
