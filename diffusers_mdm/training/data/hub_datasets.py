# SPDX-License-Identifier: Apache-2.0
"""Captioned pictures or clips in a `datasets` data set: a folder of parquet or picture or clip files, or on the Hub.

A folder of clips is one for the host's `videofolder`: beside the files a metadata.csv, .jsonl or .parquet with the
columns `file_name` and `text`. It may name files of any kind, and folders, whose numbered pictures are the frames of a
clip.
"""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import datasets

from ..recipe.data import DataRecipe
from .images import UnusableSampleError
from .reading import Request
from .samples import Sample


def load_captioned_split(recipe: DataRecipe, split: str) -> datasets.Dataset:
    """Open one split and check the columns that training reads; what is in them stays encoded until it is needed.

    Raises:
        ValueError: if the data set, the split or a column does not exist or has the wrong type; the message lists
            what there is.
    """
    if recipe.path is None:
        raise ValueError("`data.path` is not set: shards are read as a stream, without splits and columns.")
    try:
        splits = _load_splits(recipe, recipe.path)
    except FileNotFoundError as error:
        kind = "pictures" if recipe.video_column is None else "clips and their metadata.csv"
        raise ValueError(
            f"{recipe.path} is neither a folder with parquet files or {kind} nor a data set on the Hub: {error}"
        ) from error
    if split not in splits:
        raise ValueError(f"{recipe.path} has no split {split!r}; it has {', '.join(splits)}.")
    rows = splits[split]
    _check_column(rows, recipe, recipe.media_column)
    if recipe.caption is None:
        _check_column(rows, recipe, recipe.caption_column)
        _check_captions(rows, recipe)
    if recipe.label_column is not None:
        _check_column(rows, recipe, recipe.label_column)
        _check_labels(rows, recipe, recipe.label_column)
    if not len(rows):
        raise ValueError(f"Split {split!r} of {recipe.path} has no rows.")
    if recipe.video_column is not None:
        return _with_encoded_clips(rows, recipe, recipe.video_column)
    return rows.cast_column(recipe.image_column, datasets.Image(decode=False))


def _load_splits(recipe: DataRecipe, path: str) -> datasets.DatasetDict:
    if recipe.video_column is not None and Path(path).is_dir():
        names = {file.name for depth in ("*", "*/*") for file in Path(path).glob(depth)}
        if names & {"metadata.csv", "metadata.jsonl", "metadata.parquet"}:
            # Left to itself the host goes by the suffixes of most files, and knows few of clips.
            return datasets.load_dataset("videofolder", recipe.config_name, data_dir=path)
    return datasets.load_dataset(path, recipe.config_name)


def _with_encoded_clips(rows: datasets.Dataset, recipe: DataRecipe, column: str) -> datasets.Dataset:
    """The rows with a column of clips that gives bytes, or `{"bytes", "path"}`."""
    feature = rows.features[column]
    if isinstance(feature, datasets.Video):
        return rows.cast_column(column, datasets.Video(decode=False))
    if isinstance(feature, datasets.Image):  # animated ones
        return rows.cast_column(column, datasets.Image(decode=False))
    if isinstance(feature, dict) and set(feature) == {"bytes", "path"}:
        return rows
    if getattr(feature, "dtype", None) not in ("binary", "large_binary"):
        raise ValueError(
            f"Column {column!r} of {recipe.path} must hold clips, as the bytes of their files (binary) or as Video; "
            f"it holds {feature}."
        )
    return rows


def load_training_rows(recipe: DataRecipe) -> datasets.Dataset:
    """The training split, or the first `max_train_samples` rows of it."""
    rows = load_captioned_split(recipe, recipe.train_split)
    if recipe.max_train_samples is None:
        return rows
    return rows.select(range(min(recipe.max_train_samples, len(rows))))


def _check_column(rows: datasets.Dataset, recipe: DataRecipe, column: str) -> None:
    if column not in rows.column_names:
        raise ValueError(f"{recipe.path} has no column {column!r}; it has {', '.join(rows.column_names)}.")


def _check_captions(rows: datasets.Dataset, recipe: DataRecipe) -> None:
    feature = rows.features[recipe.caption_column]
    feature = getattr(feature, "feature", feature)  # of a list's entries
    if getattr(feature, "dtype", None) not in ("string", "large_string"):
        raise ValueError(
            f"Column {recipe.caption_column!r} of {recipe.path} must hold texts, or lists of texts of which every "
            f"epoch sees one; it holds {rows.features[recipe.caption_column]}."
        )


def _check_labels(rows: datasets.Dataset, recipe: DataRecipe, column: str) -> None:
    numbered = [name for name, feature in rows.features.items() if _holds_whole_numbers(feature)]
    if column not in numbered:
        raise ValueError(
            f"Column {column!r} of {recipe.path} must hold classes, whole numbers with or without names (ClassLabel); "
            f"it holds {rows.features[column]}. Columns with whole numbers: {', '.join(numbered) or 'none'}."
        )


def _holds_whole_numbers(feature: Any) -> bool:
    return str(getattr(feature, "dtype", "")).startswith(("int", "uint"))


class DatasetRows:
    """The samples of one split, by number.

    Args:
        rows: from `load_captioned_split`.
        recipe: which columns are read.
        name: of the split, for messages.
        extra_columns: further ones that are handed on, where they exist (micro-conditions).
    """

    def __init__(self, rows: datasets.Dataset, recipe: DataRecipe, name: str, extra_columns: Sequence[str] = ()):
        self.recipe, self.split = recipe, name
        self.extra_columns = [column for column in extra_columns if column in rows.column_names]
        wanted = {recipe.media_column, *self.extra_columns}
        if recipe.caption is None:
            wanted.add(recipe.caption_column)
        if recipe.label_column is not None:
            wanted.add(recipe.label_column)
        self.rows = rows.select_columns([column for column in rows.column_names if column in wanted])

    def __len__(self) -> int:
        return len(self.rows)

    def name(self, row: int) -> str:
        """How a message calls the sample."""
        return f"row {row} of {self.recipe.path} ({self.split})"

    def read(self, row: int) -> Sample:
        """The sample, with its picture or clip still encoded.

        Raises:
            UnusableSampleError: if it has none, or one that is elsewhere.
        """
        values = self.rows[row]
        kind = "picture" if self.recipe.video_column is None else "clip"
        image = encoded_file(values[self.recipe.media_column], kind)
        fields = {column: values[column] for column in self.extra_columns}
        label = None if self.recipe.label_column is None else values[self.recipe.label_column]
        if self.recipe.label_column is not None and (isinstance(label, bool) or not isinstance(label, int)):
            raise UnusableSampleError(f"its class is {label!r}, expected an integer")
        return Sample(image, clean_captions(values, self.recipe), fields, label)

    def substitutes(self, row: int, request: Request) -> Iterator[int]:
        """The rows that follow, so that it does not depend on the batch what stands in for a broken one."""
        return ((row + step) % len(self) for step in range(1, len(self)))


def encoded_file(cell: Any, kind: str = "picture") -> bytes | Path:
    """The bytes or the file of an undecoded cell of a column of pictures or clips.

    Raises:
        UnusableSampleError: if there is neither.
    """
    if isinstance(cell, bytes):
        return cell
    if cell is None or (cell.get("bytes") is None and not cell.get("path")):
        raise UnusableSampleError(f"it has no {kind}")
    if cell.get("bytes") is not None:
        return bytes(cell["bytes"])
    if "://" in cell["path"]:
        raise UnusableSampleError(f"its {kind} is not in the data set, but at {cell['path']}; download it first")
    return Path(cell["path"])


def clean_captions(values: dict[str, Any], recipe: DataRecipe) -> str | list[str]:
    """A row's caption or captions; none at all is an empty caption."""
    if recipe.caption is not None:
        return recipe.caption
    found = values[recipe.caption_column]
    if isinstance(found, list):
        return [caption or "" for caption in found]
    return found or ""


def iterate_captions(rows: datasets.Dataset, recipe: DataRecipe) -> Iterator[str]:
    """All captions of a split in order, those of a list one after the other."""
    if recipe.caption is not None:
        yield recipe.caption
        return
    for cell in rows[recipe.caption_column]:
        captions = clean_captions({recipe.caption_column: cell}, recipe)
        yield from [captions] if isinstance(captions, str) else captions
