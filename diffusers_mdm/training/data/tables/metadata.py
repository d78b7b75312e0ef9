# SPDX-License-Identifier: Apache-2.0
"""Metadata files of images or clips: one record per file, with its name, its caption and other columns.

`metadata.jsonl` has one JSON object per line, `metadata.csv` has the names of its columns in the first line, and
`metadata.parquet` is a table. `file_name` is relative to the folder of the metadata file. Errors name the file and the
line.
"""

import csv
import json
import posixpath
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow  # type: ignore[import-untyped]
import pyarrow.parquet  # type: ignore[import-untyped]

from .listing import Listing

METADATA_NAMES = ("metadata.csv", "metadata.jsonl", "metadata.parquet")
MAX_LINE_BYTES = 2**24


class Record(NamedTuple):
    """The record of one image or clip in a metadata file.

    Attributes:
        place: the file and the line, for messages.
        media: name of the image or clip, relative to the data folder.
        values: the other columns.
    """

    place: str
    media: str
    values: dict[str, Any]


def read_metadata(listing: Listing, media_column: str) -> list[Record]:
    """Read the records of all metadata files of a folder, in order.

    Args:
        listing: listing of the data folder.
        media_column: `<media_column>_file_name` is accepted as another name for the column `file_name`.

    Raises:
        ValueError: if a file is invalid, or a record names no file or one outside the folder.
    """
    records = []
    for name in listing.files:
        if posixpath.basename(name) in METADATA_NAMES:
            read = {".csv": _csv_records, ".jsonl": _json_records, ".parquet": _parquet_records}[Path(name).suffix]
            for place, values in read(listing.folder / name, str(listing.folder / name)):
                records.append(_record(listing.folder, posixpath.dirname(name), place, values, media_column))
    return records


def _record(root: Path, folder: str, place: str, values: dict[str, Any], media_column: str) -> Record:
    keys = [key for key in ("file_name", f"{media_column}_file_name") if key in values]
    if not keys:
        raise ValueError(
            f"{place}: there is no `file_name`, the file that the record belongs to; it has "
            f"{', '.join(map(str, values)) or 'nothing'}."
        )
    file_name = values.pop(keys[0])
    if not isinstance(file_name, str) or not file_name.strip():
        raise ValueError(f"{place}: `{keys[0]}` must be the name of a file.")
    path = file_name.strip().replace("\\", "/")
    if posixpath.isabs(path) or Path(path).is_absolute():
        path = posixpath.relpath(path, root.as_posix())
    else:
        path = posixpath.normpath(posixpath.join(folder, path))
    if "://" in file_name or path == ".." or path.startswith("../"):
        raise ValueError(
            f"{place}: `{keys[0]}` is {file_name!r}, outside of {root}; name files inside it, relative to the "
            "metadata file."
        )
    return Record(place, path, values)


def _lines(path: Path, name: str) -> Iterator[tuple[int, str]]:
    """Yield the lines of a text file with their numbers, starting at 1."""
    with path.open("rb") as file:
        number = 0
        while line := file.readline(MAX_LINE_BYTES + 1):
            number += 1
            if len(line) > MAX_LINE_BYTES:
                raise ValueError(f"{name}, line {number}: it is longer than {MAX_LINE_BYTES >> 20} MiB.")
            try:
                yield number, line.decode("utf-8-sig" if number == 1 else "utf-8")
            except UnicodeDecodeError as error:
                raise ValueError(
                    f"{name}, line {number}: it is not UTF-8 ({error.reason} at byte {error.start + 1}); save the "
                    "file as UTF-8."
                ) from error


def _json_records(path: Path, name: str) -> Iterator[tuple[str, dict[str, Any]]]:
    for number, line in _lines(path, name):
        if not line.strip():
            continue
        place = f"{name}, line {number}"
        try:
            values = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise ValueError(
                f"{place}: it is not JSON ({error}); expected one object per line, such as "
                '{"file_name": "1.png", "text": "a caption"}.'
            ) from error
        if not isinstance(values, dict):
            raise ValueError(f'{place}: expected an object, such as {{"file_name": "1.png", "text": "a caption"}}.')
        yield place, values


def _csv_records(path: Path, name: str) -> Iterator[tuple[str, dict[str, Any]]]:
    reader = csv.reader((line for _, line in _lines(path, name)), strict=True)
    columns: list[str] = []
    try:
        for row in reader:
            place = f"{name}, line {reader.line_num}"
            if not row:
                continue
            if not columns:
                columns = [column.strip() for column in row]
                if len(set(columns)) < len(columns):
                    raise ValueError(f"{place}: a column is named twice; the columns are {', '.join(columns)}.")
                continue
            if len(row) != len(columns):
                raise ValueError(
                    f"{place}: it has {len(row)} values, expected {len(columns)} ({', '.join(columns)}); put text "
                    'with commas in quotes, "like this, for example".'
                )
            yield place, dict(zip(columns, row, strict=True))
    except csv.Error as error:
        raise ValueError(f"{name}, line {reader.line_num}: it is not CSV ({error}).") from error


def _parquet_records(path: Path, name: str) -> Iterator[tuple[str, dict[str, Any]]]:
    number = 0
    try:
        with pyarrow.parquet.ParquetFile(path) as file:
            for batch in file.iter_batches():
                for values in batch.to_pylist():
                    number += 1
                    yield f"{name}, row {number}", values
    except (pyarrow.ArrowException, UnicodeDecodeError, OSError) as error:
        raise ValueError(f"{name}, row {number + 1}: it cannot be read as parquet ({error}).") from error
