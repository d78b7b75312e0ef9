# SPDX-License-Identifier: Apache-2.0
"""A folder of parquet files as a data set: its splits and their records.

**Splits are determined by names of files**, or of folders directly in the data folder: a file belongs to the split
that its name begins with (`train-00000-of-00001.parquet`, `validation.parquet`, `test_2.parquet`), otherwise to that
of its folder (`test/0.parquet`), otherwise to train. If a `README.md` lists files under `configs`, as data sets on the
Hub do, that decides instead of the names.
"""

import glob
import re
from pathlib import Path
from typing import Any

import datasets
import pyarrow  # type: ignore[import-untyped]
import pyarrow.parquet  # type: ignore[import-untyped]
import yaml

from .hub import reasons_of_datasets
from .listing import SPLIT_WORDS, TRAIN, LeftOut, Listing
from .metadata import METADATA_NAMES

MAX_CARD_BYTES = 2**20
_SHARDED = re.compile(r"(.+?)-\d{5}-of-\d{5}(?!\d)")
_FIRST_WORD = re.compile(r"[a-z]+(?=$|[-_. \d])")


def parquet_splits(listing: Listing, config_name: str | None) -> dict[str, list[str]]:
    """Return the parquet files of each split, by name; empty if there are none.

    Args:
        listing: listing of the data folder.
        config_name: one of the configurations in its README.md.

    Raises:
        ValueError: if the README.md has no such configuration, or names files that do not exist.
    """
    names = [
        name for name in listing.files if name.endswith(".parquet") and name.rpartition("/")[2] not in METADATA_NAMES
    ]
    configs = _configs(listing) if names else {}
    if configs:
        return _configured(listing, names, configs, config_name)
    if names and config_name is not None:
        raise ValueError(
            f"{listing.folder} has no configuration {config_name!r}: its README.md lists none; omit "
            f"`data.config_name`."
        )
    splits: dict[str, list[str]] = {}
    for name in names:
        splits.setdefault(_split_of(name), []).append(name)
    return splits


def _split_of(name: str) -> str:
    folder, _, base = name.rpartition("/")
    stem = base.removesuffix(".parquet")
    if sharded := _SHARDED.match(stem):
        return SPLIT_WORDS.get(sharded[1].lower(), sharded[1])
    word = _FIRST_WORD.match(stem.lower())
    if word and word[0] in SPLIT_WORDS:
        return SPLIT_WORDS[word[0]]
    return SPLIT_WORDS.get(folder.partition("/")[0].lower(), TRAIN)


def _configs(listing: Listing) -> dict[str, dict[str, Any]]:
    """Return the configurations in the header of README.md that name files; none if the header cannot be read."""
    path = listing.folder / "README.md"
    if "README.md" not in listing.files or path.stat().st_size > MAX_CARD_BYTES:
        return {}
    text = path.read_text(encoding="utf-8", errors="replace")
    if not text.startswith("---"):
        return {}
    try:
        values = yaml.safe_load(text.split("\n---", 1)[0].removeprefix("---"))
    except (yaml.YAMLError, ValueError, RecursionError):
        return {}
    configs = values.get("configs") if isinstance(values, dict) else None
    return {
        str(config.get("config_name", "default")): config
        for config in (configs if isinstance(configs, list) else [])
        if isinstance(config, dict) and config.get("data_files")
    }


def _configured(
    listing: Listing, names: list[str], configs: dict[str, dict[str, Any]], config_name: str | None
) -> dict[str, list[str]]:
    wanted = config_name or ("default" if "default" in configs or len(configs) > 1 else next(iter(configs)))
    if wanted not in configs:
        raise ValueError(
            f"{listing.folder} has no configuration {wanted!r}; its README.md lists {', '.join(configs)}. Name one as "
            "`data.config_name` (--dataset_config_name)."
        )
    splits = {}
    for split, patterns in _patterns(configs[wanted]["data_files"]).items():
        found = {name for pattern in patterns for name in _matches(listing, pattern)}
        splits[split] = [name for name in names if name in found]
        if not splits[split]:
            raise ValueError(
                f"The README.md of {listing.folder} says that split {split!r} is {', '.join(patterns)}, but there is "
                "no such parquet file; correct its `configs`, or remove them."
            )
    return splits


def _patterns(data_files: Any) -> dict[str, list[str]]:
    if isinstance(data_files, list) and all(isinstance(entry, dict) for entry in data_files):
        data_files = {entry.get("split", TRAIN): entry.get("path", ()) for entry in data_files}
    if not isinstance(data_files, dict):
        data_files = {TRAIN: data_files}
    return {
        str(split): [str(pattern) for pattern in (paths if isinstance(paths, list) else [paths])]
        for split, paths in data_files.items()
    }


def _matches(listing: Listing, pattern: str) -> set[str]:
    try:
        return {path.relative_to(listing.folder).as_posix() for path in listing.folder.glob(pattern)}
    except (ValueError, NotImplementedError, IndexError):  # an absolute pattern, or one that leads out of the folder
        return set()


def load_parquet(listing: Listing, names: list[str]) -> datasets.Dataset:
    """Load the records of parquet files, memory-mapped from disk.

    Raises:
        ValueError: if they are damaged, or have different columns.
    """
    # Characters of a name must not be taken as parts of a pattern.
    paths = [glob.escape(str(listing.folder / name)) for name in names]
    with reasons_of_datasets(str(listing.folder)):
        return datasets.load_dataset("parquet", data_files={TRAIN: paths}, split=TRAIN)


def count_records(listing: Listing, names: list[str]) -> int:
    """Return the number of records in parquet files, from their metadata.

    Raises:
        ValueError: if a file is damaged.
    """
    count = 0
    for name in names:
        try:
            count += pyarrow.parquet.read_metadata(listing.folder / name).num_rows
        except (pyarrow.ArrowException, OSError) as error:
            raise ValueError(f"{listing.folder / name} cannot be read as parquet ({error}).") from error
    return count


def other_files(listing: Listing, splits: dict[str, list[str]]) -> LeftOut:
    """Return the other files in a folder of parquet files."""
    used = {name for names in splits.values() for name in names}
    others = [
        name for name in listing.files if name not in used and Path(name).suffix not in (".md", ".txt", ".json", "")
    ]
    left_out = {reason: list(names) for reason, names in listing.left_out.items()}
    if others:
        left_out["files beside the parquet files of its splits"] = others
    return left_out
