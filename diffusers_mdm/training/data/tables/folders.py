# SPDX-License-Identifier: Apache-2.0
"""A local data folder of any kind: its splits, the number of samples in each, and what is left out."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import datasets

from ...recipe.data import TableData
from .captioned_folder import read_captioned_folder
from .listing import LeftOut, list_folder
from .parquet_files import count_records, load_parquet, other_files, parquet_splits

NAMED_FILES = 3


@dataclass(frozen=True)
class DataFolder:
    """The splits of a folder.

    Attributes:
        kind: kind of its samples: "images", "clips" or "records in parquet files".
        counts: number of samples in each split.
        load: opens a split.
        left_out: files that are not used, by reason.
    """

    kind: str
    counts: Mapping[str, int]
    load: Callable[[str], datasets.Dataset]
    left_out: LeftOut

    def describe(self) -> list[str]:
        """Describe in one line each how many samples were found, and what was left out and why."""
        found = ", ".join(f"{count:,} in {split}" for split, count in self.counts.items())
        return [f"found {sum(self.counts.values()):,} {self.kind}: {found}", *describe_left_out(self.left_out)]


def open_folder(path: Path, recipe: TableData) -> DataFolder | None:
    """Open the folder of parquet, image or clip files at `path`; None if it contains none of these.

    Raises:
        ValueError: if something in it is invalid or ambiguous.
    """
    listing = list_folder(path)
    names = parquet_splits(listing, recipe.config_name)
    if names:
        counts = {split: count_records(listing, files) for split, files in names.items()}
        left_out = other_files(listing, names)
        return DataFolder(
            "records in parquet files", counts, lambda split: load_parquet(listing, names[split]), left_out
        )
    files = read_captioned_folder(listing, recipe)
    if files is None:
        if listing.left_out:
            raise ValueError(f"{path} contains nothing to train on; {'; '.join(describe_left_out(listing.left_out))}.")
        return None
    counts = {split: len(table) for split, table in files.splits.items()}
    kind = "images" if recipe.video_column is None else "clips"
    return DataFolder(kind, counts, files.splits.__getitem__, files.left_out)


def describe_left_out(left_out: Mapping[str, Sequence[str]]) -> list[str]:
    """Describe how many files are left out for each reason, with the names of the first ones."""
    return [
        f"left out {len(names):,}: {reason} ({', '.join(names[:NAMED_FILES])}{' …' * (len(names) > NAMED_FILES)})"
        for reason, names in left_out.items()
    ]
