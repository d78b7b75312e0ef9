# SPDX-License-Identifier: Apache-2.0
"""Captions, classes and images of one split, cell by cell."""

from pathlib import Path

import pyarrow
import pyarrow.parquet
import pytest

from diffusers_mdm.training.data.local_files import AllowedFolders
from diffusers_mdm.training.data.skip_budget import UnusableSampleError
from diffusers_mdm.training.data.tables.splits import (
    SplitRecords,
    encoded_file,
    first_captions,
    iterate_captions,
    load_captioned_split,
)
from diffusers_mdm.training.recipe.data import TableData
from tests.training.image_files import png


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
    assert list(first_captions(rows, recipe)) == ["one ", "", ""]


def test_one_caption_for_all_is_the_first_of_every_record(folder):
    recipe = write(folder).with_fields(caption="every time")
    rows = load_captioned_split(recipe, "train")
    assert list(first_captions(rows, recipe)) == ["every time"] * 3


def test_other_columns_have_captions_too(folder):
    recipe = write(folder, text=["a", "b", "c"], label=["frog\0", None, "frog"], words=[["x", "y"], [], ["z"]])
    recipe = recipe.with_fields(other_caption_columns={"words": 0.5, "label": 0.25})
    rows = load_captioned_split(recipe, "train")
    read = [SplitRecords(rows, recipe, "train").read(number).all_captions for number in range(3)]
    assert read[0] == ("a", {"words": ["x", "y"], "label": "frog "})
    assert read[1] == ("b", {"words": [], "label": ""})
    assert list(iterate_captions(rows, recipe)) == ["a", "b", "c", "x", "y", "z", "frog ", "", "frog"]
    assert list(first_captions(rows, recipe)) == ["a", "b", "c"]


@pytest.mark.parametrize(
    ("column", "message"),
    [
        ("size", r"Column 'size' of .* must contain texts, or lists of texts"),
        ("lable", r"no column 'lable'; it has image, text, size\. `data.other_caption_columns`"),
    ],
)
def test_other_columns_must_exist_and_contain_texts(folder, column, message):
    recipe = write(folder, text=["a", "b", "c"], size=[1, 2, 3]).with_fields(other_caption_columns={column: 0.5})
    with pytest.raises(ValueError, match=message):
        load_captioned_split(recipe, "train")


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
        (None, "it has no image"),
        ({"bytes": None, "path": None}, "it has no image"),
        ({"bytes": None, "path": "https://example.org/a.png"}, "download it first"),
        ({"bytes": None, "path": "/dev/zero"}, "outside the data set|cannot be found"),
    ],
)
def test_cells_without_an_image_of_their_own_say_why(tmp_path, cell, message):
    with pytest.raises(UnusableSampleError, match=message):
        encoded_file(cell, AllowedFolders.of_folder(tmp_path))
