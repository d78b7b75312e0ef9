# SPDX-License-Identifier: Apache-2.0
"""Folders of parquet files: splits, configurations, and faults."""

import os

import datasets
import pyarrow
import pyarrow.parquet
import pytest

from diffusers_mdm.training.data.skip_budget import UnusableSampleError
from diffusers_mdm.training.data.sources import open_source, open_training_images
from diffusers_mdm.training.data.tables.listing import list_folder
from diffusers_mdm.training.data.tables.parquet_files import parquet_splits
from diffusers_mdm.training.data.tables.splits import SplitRecords, load_captioned_split
from diffusers_mdm.training.recipe.data import DataRecipe
from tests.training.image_files import png


@pytest.fixture(autouse=True)
def own_cache(tmp_path_factory, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path_factory.mktemp("cache"))


def table(path, images=None, **columns):
    path.parent.mkdir(parents=True, exist_ok=True)
    images = pyarrow.array([png(), png("blue")]) if images is None else images
    texts = {"text": ["a", "b"][: len(images)]}
    pyarrow.parquet.write_table(pyarrow.table({"image": images, **texts, **columns}), path)
    return path.parent


NAMES = {
    "train-00000-of-00001.parquet": "train",
    "validation-00000-of-00002-abc.parquet": "validation",
    "data/val_2.parquet": "validation",
    "test/part-1.parquet": "test",
    "held_out-00000-of-00001.parquet": "held_out",
    "trains.parquet": "train",
    "my-test.parquet": "train",
    "0000.parquet": "train",
    "testimony.parquet": "train",
}


@pytest.mark.parametrize("name", NAMES)
def test_names_begin_with_their_split(tmp_path, name):
    (tmp_path / name).parent.mkdir(exist_ok=True)
    (tmp_path / name).write_bytes(b"")
    assert parquet_splits(list_folder(tmp_path), None) == {NAMES[name]: [name]}


def test_a_card_that_lists_files_decides(tmp_path):
    for name in ("one.parquet", "two.parquet", "train.parquet"):
        (tmp_path / name).write_bytes(b"")
    card = "---\nconfigs:\n- config_name: {}\n  data_files:\n  - split: {}\n    path: {}\n---\n"
    (tmp_path / "README.md").write_text(card.format("small", "holdout", '"o*.parquet"'))
    listing = list_folder(tmp_path)
    assert parquet_splits(listing, None) == parquet_splits(listing, "small") == {"holdout": ["one.parquet"]}
    with pytest.raises(ValueError, match=r"no configuration 'large'; its README.md lists small"):
        parquet_splits(listing, "large")
    for pattern in ('"../*.parquet"', "/etc/*", "three.parquet"):
        (tmp_path / "README.md").write_text(card.format("small", "train", pattern))
        with pytest.raises(ValueError, match="there is no such parquet file"):
            parquet_splits(list_folder(tmp_path), None)


@pytest.mark.parametrize(
    "card", ["license: [mit\nfoo: : bar", "dataset_info:\n  splits:\n  - name: train\n    num_examples: 9", "[1]"]
)
def test_other_heads_of_a_card_do_not_matter(tmp_path, card):
    folder = table(tmp_path / "data.parquet")
    (folder / "README.md").write_text(f"---\n{card}\n---\n")
    assert len(load_captioned_split(DataRecipe(path=str(folder)), "train")) == 2


@pytest.mark.parametrize("name", ["photos [1]", "q?", "a*b"])
def test_folders_of_any_name_are_that_folder(tmp_path, name):
    table(tmp_path / "photos 1" / "0.parquet", pyarrow.array([png()] * 3), text=["x", "y", "z"])
    folder = table(tmp_path / name / "train [0].parquet")
    assert load_captioned_split(DataRecipe(path=str(folder)), "train")["text"][:] == ["a", "b"]


def test_what_stands_beside_the_tables_is_named(tmp_path):
    folder = table(tmp_path / "train.parquet")
    table(tmp_path / "test.parquet")
    (folder / "0.png").write_bytes(png())
    lines = open_source(DataRecipe(path=str(folder))).describe()
    assert "found 4 records in parquet files: 2 in test, 2 in train" in lines[0]
    assert "0.png" in lines[1]


FAULTS = {
    "numbers": (pyarrow.array([1, 2]), "'image' of .* must contain images"),
    "lists": (pyarrow.array([[{"bytes": b"", "path": None}]] * 2), "'image' of .* must contain images"),
}


@pytest.mark.parametrize("case", FAULTS)
def test_columns_of_other_kinds_are_refused(tmp_path, case):
    with pytest.raises(ValueError, match=FAULTS[case][1]):
        load_captioned_split(DataRecipe(path=str(table(tmp_path / "0.parquet", FAULTS[case][0]))), "train")


def test_faults_inside_datasets_are_one_sentence(tmp_path):
    folder = table(tmp_path / "mixed" / "0.parquet")
    table(folder / "1.parquet", more=[1, 2])
    with pytest.raises(ValueError, match=r"mixed cannot be read as a data set: .*column names don't match"):
        load_captioned_split(DataRecipe(path=str(folder)), "train")
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "0.parquet").write_bytes(b"PAR1 and no more")
    with pytest.raises(ValueError, match=r"0\.parquet cannot be read as parquet"):
        load_captioned_split(DataRecipe(path=str(tmp_path / "broken")), "train")


def test_rows_name_files_inside_the_folder_alone(tmp_path):
    (tmp_path / "private.png").write_bytes(png())
    names = ["inside.png", str(tmp_path / "private.png"), "../private.png", "pipe", "/dev/zero"]
    struct = pyarrow.array([{"bytes": None, "path": name} for name in names])
    folder = table(tmp_path / "data" / "0.parquet", struct, text=list("abcde"))
    (folder / "inside.png").write_bytes(png("blue"))
    if hasattr(os, "mkfifo"):
        os.mkfifo(folder / "pipe")
    recipe = DataRecipe(path=str(folder))
    images = open_training_images(recipe, 8)
    assert len(images.skipped) == len(names) - 1
    assert images.images.load([0]).pixels[0, 2].float().mean() > 200
    rows = SplitRecords(load_captioned_split(recipe, "train"), recipe, "train")
    for row in (1, 2, 4):
        with pytest.raises(UnusableSampleError, match=r"outside the data set|cannot be found"):
            rows.read(row)
