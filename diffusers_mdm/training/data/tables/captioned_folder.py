# SPDX-License-Identifier: Apache-2.0
"""A folder of image or clip files as a data set: its samples with their captions, classes and splits.

A caption comes from a record in a metadata file, or from `x.txt` beside `x.png`. A class comes from a column of the
records or, for the column "label", from the name of the folder that contains the file. Files that cannot be used are
left out and counted by reason, never silently.
"""

import posixpath
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import datasets
import pyarrow  # type: ignore[import-untyped]

from ...recipe.data import TableData
from ..file_kinds import CLIP_SUFFIXES, IMAGE_SUFFIXES, suffix_of, without_suffix
from ..local_files import read_file
from ..skip_budget import UnusableSampleError
from ..text.captions import clean_caption, clean_captions
from .listing import LeftOut, Listing, has_split_folders, splits_by_folder
from .metadata import METADATA_NAMES, Record, read_metadata

MAX_CAPTION_BYTES = 2**20
LABEL_COLUMN = "label"
NO_CAPTION = "no caption"
_SILENT_NAMES = ("readme", "license", "licence", "notice", "copying", "citation")
Values = dict[str, Any]


class Found(NamedTuple):
    """An image or clip in the folder.

    Attributes:
        name: name of its file or, for a clip of frames, of its folder, relative to the data folder.
        values: its other columns.
        place: file and line of its record, for messages; "" without a record.
    """

    name: str
    values: Values
    place: str = ""


@dataclass(frozen=True)
class CaptionedFolder:
    """The contents of a folder of images or clips.

    Attributes:
        splits: the samples of each split, with their columns; files are named relative to the folder.
        left_out: files that are not used, by reason.
    """

    splits: dict[str, datasets.Dataset]
    left_out: LeftOut


def read_captioned_folder(listing: Listing, recipe: TableData) -> CaptionedFolder | None:
    """Read the images or, with `video_column`, the clips of a folder; None if there are none.

    Raises:
        ValueError: if a metadata file is invalid, or the folder is ambiguous.
    """
    left_out = {reason: list(names) for reason, names in listing.left_out.items()}
    records = read_metadata(listing, recipe.media_column)
    samples = _recorded(listing, records, left_out)
    texts = {without_suffix(name): name for name in listing.files if suffix_of(name) == "txt"}
    samples += [Found(name, {}) for name in _unrecorded(listing, recipe, {name for name, _, _ in samples}, texts)]
    if not samples:
        return None
    _note_other_files(listing, [name for name, _, _ in samples], texts, left_out)
    if recipe.caption is None:
        _clean_other_captions(samples, recipe)
        samples = _with_captions(listing, samples, recipe.caption_column, texts, left_out)
    splits = splits_by_folder([name for name, _, _ in samples], str(listing.folder))
    _add_folder_labels(samples, recipe.label_column, has_split_folders(splits))
    if recipe.label_column is not None and any(recipe.label_column in values for _, values, _ in samples):
        samples = _with_column(samples, recipe.label_column, "no class", left_out)
    return CaptionedFolder(_as_tables(samples, splits, recipe), left_out)


def _recorded(listing: Listing, records: Iterable[Record], left_out: LeftOut) -> list[Found]:
    """Return the samples that records name, with the values of the records."""
    files = set(listing.files)
    folders = {parent.as_posix() for name in listing.files for parent in Path(name).parents}
    samples = []
    for record in records:
        if record.media in files or record.media in folders:
            samples.append(Found(record.media, record.values, record.place))
        elif not any(record.media in names for names in listing.left_out.values()):
            left_out.setdefault("named in a metadata file, but missing", []).append(f"{record.media} ({record.place})")
    return samples


def _unrecorded(listing: Listing, recipe: TableData, known: set[str], texts: Mapping[str, str]) -> list[str]:
    """Return the images or clips that no record names."""
    if recipe.video_column is None:
        return [name for name in listing.files if name not in known and suffix_of(name) in IMAGE_SUFFIXES]
    holders = {posixpath.dirname(name) for name in listing.files if suffix_of(name) in IMAGE_SUFFIXES}
    folders = sorted(folder for folder in holders if folder in texts and folder not in known)
    frames = {*folders, *known}
    clips = [name for name in listing.files if name not in known and suffix_of(name) in CLIP_SUFFIXES]
    return sorted([*folders, *(name for name in clips if posixpath.dirname(name) not in frames)])


def _note_other_files(listing: Listing, used: Sequence[str], texts: Mapping[str, str], left_out: LeftOut) -> None:
    """Count the files that are not samples and do not belong to one."""
    names = {*used, *(texts[stem] for name in used for stem in (name, without_suffix(name)) if stem in texts)}
    for name in listing.files:
        base = posixpath.basename(name)
        belongs = name in names or posixpath.dirname(name) in names or base in METADATA_NAMES
        if not belongs and not base.lower().startswith(_SILENT_NAMES):
            left_out.setdefault("files of other kinds, or texts without a sample of the same name", []).append(name)


def _with_captions(
    listing: Listing, samples: list[Found], column: str, texts: Mapping[str, str], left_out: LeftOut
) -> list[Found]:
    """Return the samples that have captions, with these cleaned; all samples if none has a caption."""
    for name, values, place in samples:
        stem = next((stem for stem in (name, without_suffix(name)) if stem in texts), None)
        if column in values:
            values[column] = _caption_of_record(place, values[column], column)
        elif stem is not None:
            try:
                text = read_file(listing.folder / texts[stem], MAX_CAPTION_BYTES).decode("utf-8-sig")
                values[column] = clean_caption(text.strip())
            except UnicodeDecodeError:
                left_out.setdefault("texts that are not UTF-8", []).append(texts[stem])
            except UnusableSampleError as error:
                left_out.setdefault(f"texts that cannot be read: {error}", []).append(texts[stem])
    if not any(column in values for _, values, _ in samples):
        return samples  # the column is missing, which is reported separately
    return _with_column(samples, column, NO_CAPTION, left_out)


def _clean_other_captions(samples: Iterable[Found], recipe: TableData) -> None:
    for _, values, place in samples:
        for column in values.keys() & recipe.other_caption_columns.keys():
            values[column] = _caption_of_record(place, values[column], column)


def _caption_of_record(place: str, value: Any, column: str) -> str | list[str]:
    try:
        return clean_captions(value)
    except ValueError as error:
        raise ValueError(f"{place}, `{column}`: {error}.") from error


def _with_column(samples: list[Found], column: str, reason: str, left_out: LeftOut) -> list[Found]:
    for name, values, _ in samples:
        if column not in values:
            left_out.setdefault(reason, []).append(name)
    return [sample for sample in samples if column in sample.values]


def _add_folder_labels(samples: list[Found], column: str | None, skips_split: bool) -> None:
    """Use the folder of each sample as its class, if the column of classes is "label" and does not exist.

    Args:
        samples: names and values.
        column: the column of classes; None for none.
        skips_split: whether the first folder of each name is that of a split.
    """
    if column != LABEL_COLUMN or any(column in values for _, values, _ in samples):
        return
    folders = [posixpath.dirname(name) for name, _, _ in samples]
    inside = [
        folder.split("/")[1:] if skips_split else [part for part in folder.split("/") if part] for folder in folders
    ]
    depths = {len(parts) for parts in inside}
    if len(depths) == 1 and depths != {0}:
        for (_, values, _), parts in zip(samples, inside, strict=True):
            values[column] = FolderName(parts[-1])


class FolderName(str):
    """The name of a folder that is a class name."""


def _as_tables(
    samples: Sequence[Found], splits: Mapping[str, Sequence[str]], recipe: TableData
) -> dict[str, datasets.Dataset]:
    columns = {key: [values.get(key) for _, values, _ in samples] for _, values, _ in samples for key in values}
    columns.pop(recipe.media_column, None)
    split_of = {name: split for split, names in splits.items() for name in names}
    features: dict[str, Any] = {recipe.media_column: MEDIA}
    arrays: dict[str, list[Any]] = {recipe.media_column: [{"bytes": None, "path": name} for name, _, _ in samples]}
    for key, values in columns.items():
        typed = _typed(values, key in recipe.caption_columns)
        if typed is not None:
            features[key], arrays[key] = typed
    tables = {}
    for split in splits:
        numbers = [number for number, (name, _, _) in enumerate(samples) if split_of[name] == split]
        chosen = {key: [values[number] for number in numbers] for key, values in arrays.items()}
        tables[split] = datasets.Dataset.from_dict(chosen, features=datasets.Features(features))
    return tables


MEDIA = datasets.Image(decode=False)  # stored as {"bytes", "path"}, for clips as well


def _typed(values: list[Any], is_caption: bool) -> tuple[Any, list[Any]] | None:
    """Return the feature type of a column and its values in that type; None if the values have no common type."""
    known = [value for value in values if value is not None]
    if not known:
        return None
    if is_caption and any(isinstance(value, list) for value in known):
        several = [[] if value is None else value if isinstance(value, list) else [value] for value in values]
        return datasets.Sequence(datasets.Value("string")), several
    if all(isinstance(value, FolderName) for value in known):
        names = sorted(set(known))
        return datasets.ClassLabel(names=names), [None if value is None else names.index(value) for value in values]
    if all(isinstance(value, str) for value in known):
        if not is_caption:
            for kind, to_number in (("int64", int), ("float64", float)):
                numbers = _numbers(values, to_number)
                if numbers is not None:
                    return datasets.Value(kind), numbers
        return datasets.Value("string"), [None if value is None else clean_caption(value) for value in values]
    try:
        return datasets.Features.from_arrow_schema(pyarrow.schema([("column", pyarrow.array(values).type)]))[
            "column"
        ], values
    except (pyarrow.ArrowException, UnicodeError, OverflowError):
        return None


def _numbers(values: list[Any], to_number: type[int] | type[float]) -> list[int | float | None] | None:
    try:
        return [None if not value else to_number(value) for value in values]
    except ValueError:
        return None
