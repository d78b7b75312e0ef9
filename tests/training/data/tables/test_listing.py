# SPDX-License-Identifier: Apache-2.0
"""Which files of a folder may be read, and what makes a split."""

import os

import pytest

from diffusers_mdm.training.data.tables.listing import list_folder, splits_by_folder


def touch(folder, *names):
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(b"")


def test_hidden_files_and_what_leads_elsewhere_are_no_files_of_the_folder(tmp_path):
    data = tmp_path / "data"
    touch(data, "b.png", "a/1.png", ".hidden.png", ".git/x.png", "__pycache__/y.png")
    touch(tmp_path, "private.png", "other/z.png")
    (data / "private.png").symlink_to(tmp_path / "private.png")
    (data / "other").symlink_to(tmp_path / "other")
    (data / "inside.png").symlink_to("a/1.png")
    (data / "nowhere.png").symlink_to("nothing.png")
    (data / "up").symlink_to(data)
    listing = list_folder(data)
    assert listing.files == ["a/1.png", "b.png", "inside.png"]
    assert sorted(name for names in listing.left_out.values() for name in names) == [
        "nowhere.png",
        "other",
        "private.png",
    ]


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="this system has no named pipes")
def test_pipes_are_left_out_and_not_waited_for(tmp_path):
    touch(tmp_path, "a.png")
    os.mkfifo(tmp_path / "b.png")
    listing = list_folder(tmp_path)
    assert listing.files == ["a.png"]
    assert list(listing.left_out.values()) == [["b.png"]]


WORDS_THAT_ARE_NO_SPLITS = [
    ["my train 1.png", "IMG_1.png", "test.png"],
    ["cat.png", "red-train.png", "validation 2.png"],
    ["bus/1.png", "train/1.png"],
    ["bus/1.png", "train-steam/1.png", "train_electric/1.png"],
    ["test/1.png", "validation/1.png"],
    ["train/1.png", "2.png"],
    ["crash/test/1.png", "crash/train/2.png"],
]


@pytest.mark.parametrize("names", WORDS_THAT_ARE_NO_SPLITS)
def test_words_in_names_take_nothing_out_of_training(names):
    assert splits_by_folder(names, "folder") == {"train": names}


@pytest.mark.parametrize(
    ("names", "splits"),
    [
        (["train/1.png", "validation/2.png"], {"train": ["train/1.png"], "validation": ["validation/2.png"]}),
        (["Training/a/1.png", "val/2.png", "eval/3.png"], {"train": 1, "validation": 1, "test": 1}),
        (["train/1.png", "train/test/2.png"], {"train": 2}),
        (["train/1.png", "dev/2.png", "valid/3.png"], {"train": 1, "validation": 2}),
    ],
)
def test_folders_that_are_all_splits_are_splits(names, splits):
    found = splits_by_folder(names, "folder")
    assert {split: len(members) for split, members in found.items()} == {
        split: members if isinstance(members, int) else len(members) for split, members in splits.items()
    }


@pytest.mark.parametrize("beside", ["cover.png", "bus/1.png"])
def test_what_can_be_meant_in_two_ways_is_an_error(beside):
    with pytest.raises(ValueError, match=f"such as {beside}.*if they are classes, move all folders into one"):
        splits_by_folder(["train/1.png", "test/1.png", beside], "folder")
