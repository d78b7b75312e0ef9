# SPDX-License-Identifier: Apache-2.0
"""Captions, classes and pictures of one split, cell by cell."""

from pathlib import Path

import pyarrow
import pyarrow.parquet
import pytest

from diffusers_mdm.training.data.local_files import AllowedFolders
from diffusers_mdm.training.data.skip_budget import UnusableSampleError
from diffusers_mdm.training.data.tables.splits import (
    SplitRecords,
    encoded_file,
    iterate_captions,
    load_captioned_split,
)
from diffusers_mdm.training.recipe.data import TableData
from tests.training.picture_files import png


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")
    (tmp_path / "data").mkdir()
    return tmp_path / "data"


def write(folder: Path, **columns: object) -> TableData:
    pyarrow.parquet.write_table(pyarrow.table({"image": [png()] * 3, **columns}), folder / "train.parquet")
    return TableData(path=str(folder))


def test_a_text_that_is_no_utf8_costs_one_record(folder):
    broken = pyarrow.array([b"good", b"caf\xe9", b"fine"]).view(pyarrow.string())
    recipe = write(folder, text=broken)
    rows = load_captioned_split(recipe, "train")
    assert list(iterate_captions(rows, recipe)) == ["good", "fine"]
    records = SplitRecords(rows, recipe, "train")
    assert records.read(2).captions == "fine"
    with pytest.raises(UnusableSampleError, match="not UTF-8"):
        records.read(1)
    assert records.name(1) == f"record 1 of {folder} (train)"


def test_lists_of_captions_are_cleaned_and_none_is_empty(folder):
    recipe = write(folder, text=[["one\0", "two"], [], None])
    rows = load_captioned_split(recipe, "train")
    assert list(iterate_captions(rows, recipe)) == ["one ", "two", ""]
    assert SplitRecords(rows, recipe, "train").read(0).captions == ["one ", "two"]


def test_classes_must_be_whole_numbers(folder):
    recipe = write(folder, text=["a", "b", "c"], kind=[1, None, 2**40])
    recipe = recipe.with_fields(label_column="kind")
    records = SplitRecords(load_captioned_split(recipe, "train"), recipe, "train")
    assert records.read(0).label == 1
    for number in (1, 2):
        with pytest.raises(UnusableSampleError, match=r"its class is .*, expected an integer"):
            records.read(number)


@pytest.mark.parametrize(
    ("cell", "message"),
    [
        (None, "it has no picture"),
        ({"bytes": None, "path": None}, "it has no picture"),
        ({"bytes": None, "path": "https://example.org/a.png"}, "download it first"),
        ({"bytes": None, "path": "/dev/zero"}, "outside the data set|cannot be found"),
    ],
)
def test_cells_without_a_picture_of_their_own_say_why(tmp_path, cell, message):
    with pytest.raises(UnusableSampleError, match=message):
        encoded_file(cell, AllowedFolders.of_folder(tmp_path))
