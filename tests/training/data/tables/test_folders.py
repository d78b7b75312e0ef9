# SPDX-License-Identifier: Apache-2.0
"""A folder is opened as what is in it, and says what it leaves out."""

import pytest

from diffusers_mdm.training.data.tables.folders import describe_left_out, open_folder
from diffusers_mdm.training.recipe.data import DataRecipe
from tests.training.image_files import png


def test_parquet_files_are_splits_of_records(images_dir):
    folder = open_folder(images_dir, DataRecipe(path=str(images_dir)))
    assert (folder.kind, dict(folder.counts)) == ("records in parquet files", {"train": 12})
    assert folder.load("train").column_names == ["image", "text"]
    assert folder.describe() == ["found 12 records in parquet files: 12 in train"]


def test_images_with_captions_beside_them_are_read_and_the_rest_is_told(tmp_path):
    for number in range(3):
        (tmp_path / f"{number}.png").write_bytes(png())
        (tmp_path / f"{number}.txt").write_text(f"picture {number}", encoding="utf-8")
    (tmp_path / "notes.docx").write_bytes(b"nothing to see")
    folder = open_folder(tmp_path, DataRecipe(path=str(tmp_path)))
    assert (folder.kind, dict(folder.counts)) == ("images", {"train": 3})
    assert sorted(folder.load("train")["text"]) == ["picture 0", "picture 1", "picture 2"]
    lines = folder.describe()
    assert lines[0] == "found 3 images: 3 in train"
    assert any("notes.docx" in line for line in lines[1:])


def test_an_empty_folder_is_none(tmp_path):
    assert open_folder(tmp_path, DataRecipe(path=str(tmp_path))) is None


def test_a_folder_of_other_things_is_refused_by_what_is_there(tmp_path):
    (tmp_path / "elsewhere.png").write_bytes(png())
    folder = tmp_path / "data"
    folder.mkdir()
    (folder / "link.png").symlink_to(tmp_path / "elsewhere.png")  # files outside of the folder are not read
    with pytest.raises(ValueError, match=r"nothing to train on; left out 1: .*link\.png"):
        open_folder(folder, DataRecipe(path=str(folder)))


def test_only_the_first_of_many_files_are_named():
    (line,) = describe_left_out({"no picture": [f"{number}.doc" for number in range(1234)]})
    assert line == "left out 1,234: no picture (0.doc, 1.doc, 2.doc …)"
    assert describe_left_out({"no picture": ["a.doc"]}) == ["left out 1: no picture (a.doc)"]
