# SPDX-License-Identifier: Apache-2.0
"""Folders of images and clips: captions, classes, and what is left out."""

import json

import pytest
from PIL import Image

from diffusers_mdm.training.data.skip_budget import SkipBudget
from diffusers_mdm.training.data.sources import open_source, open_training_images, training_captions
from diffusers_mdm.training.data.tables.splits import SplitRecords, load_captioned_split
from diffusers_mdm.training.recipe.data import DataRecipe


def put_images(folder, *names, captions=()):
    for number, name in enumerate(names):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (8, 8), (number, 0, 0)).save(folder / name)
    if captions:
        lines = [json.dumps({"file_name": name, "text": text}) for name, text in zip(names, captions, strict=True)]
        (folder / "metadata.jsonl").write_text("\n".join(lines))
    return folder


def captions_of(folder, **fields):
    return list(training_captions(DataRecipe(path=str(folder), **fields)))


@pytest.mark.parametrize("name", ["photos [1]", "q?", "a*b", "only [pics]", "{a,b}", "%41", "train", "my test"])
def test_folders_of_any_name_are_that_folder(tmp_path, name):
    for other, count in ((name, 2), ("photos 1", 3), ("qx", 3)):
        put_images(
            tmp_path / other, *(f"{n}.png" for n in range(count)), captions=[f"{other} {n}" for n in range(count)]
        )
    assert captions_of(tmp_path / name) == [f"{name} 0", f"{name} 1"]


def test_texts_beside_images_are_their_captions(tmp_path):
    put_images(tmp_path, "a.png", "b.jpg", "sub/c.d.webp", "silent.png")
    (tmp_path / "a.txt").write_text("a cat\n", encoding="utf-8-sig")
    (tmp_path / "b.jpg.txt").write_text("a dog")
    (tmp_path / "sub" / "c.d.txt").write_text("a café", encoding="utf-8")
    assert captions_of(tmp_path) == ["a cat", "a dog", "a café"]
    described = "\n".join(open_source(DataRecipe(path=str(tmp_path))).describe())
    assert "found 3 images: 3 in train" in described
    assert "left out 1: no caption (silent.png)" in described


def test_captions_of_metadata_and_of_texts_go_together(tmp_path):
    put_images(tmp_path, "a.png", captions=["from metadata"])
    put_images(tmp_path, "b.png")
    (tmp_path / "b.txt").write_text("from a text")
    (tmp_path / "notes.docx").write_text("no picture")
    assert captions_of(tmp_path) == ["from metadata", "from a text"]
    assert captions_of(tmp_path, caption="one for all") == ["one for all"]
    assert len(load_captioned_split(DataRecipe(path=str(tmp_path), caption="one for all"), "train")) == 2
    assert "(notes.docx)" in open_source(DataRecipe(path=str(tmp_path))).describe()[-1]


def test_a_folder_without_captions_says_how_it_gets_some(tmp_path):
    put_images(tmp_path, "1.png", "2.png")
    with pytest.raises(ValueError, match=r"no column 'text'; it has image\. .* 1\.txt beside .* metadata\.csv"):
        load_captioned_split(DataRecipe(path=str(tmp_path)), "train")


def test_texts_that_are_no_utf8_or_endless_are_left_out_by_name(tmp_path):
    put_images(tmp_path, "a.png", "b.png", "c.png")
    (tmp_path / "a.txt").write_bytes("café".encode("latin-1"))
    (tmp_path / "b.txt").write_bytes(b"x" * (2**20 + 1))
    (tmp_path / "c.txt").write_bytes(b"x" * 2**20)
    assert [len(caption) for caption in captions_of(tmp_path)] == [16384]
    described = "\n".join(open_source(DataRecipe(path=str(tmp_path))).describe())
    assert "no caption (a.png, b.png)" in described
    assert all(name in described for name in ("UTF-8", "larger than 1 MiB"))


@pytest.mark.parametrize(("folders", "inside"), [(("bus", "train", "test"), ""), (("bus", "train"), "train/")])
def test_folders_are_classes_whatever_they_are_called(tmp_path, folders, inside):
    folders = [folder for folder in folders if inside or folder != "test"]
    put_images(tmp_path, *(f"{inside}{folder}/{n}.png" for folder in folders for n in range(3)))
    rows = load_captioned_split(DataRecipe(path=str(tmp_path), caption="", label_column="label"), "train")
    assert rows.features["label"].names == ["bus", "train"]
    assert rows["label"][:] == [0, 0, 0, 1, 1, 1]


def test_folders_of_different_depth_are_no_classes(tmp_path):
    put_images(tmp_path, "bus/1.png", "train/steam/1.png")
    with pytest.raises(ValueError, match=r"no column 'label'.*all at the same depth"):
        load_captioned_split(DataRecipe(path=str(tmp_path), caption="", label_column="label"), "train")


def test_columns_of_metadata_have_types(tmp_path):
    put_images(tmp_path, "a.png", "b.png")
    lines = ["file_name,text,label,beauty,note", 'a.png,"one, two",1,0.5,x', "b.png,7,0,,y"]
    (tmp_path / "metadata.csv").write_text("\n".join(lines))
    recipe = DataRecipe(path=str(tmp_path), label_column="label")
    rows = SplitRecords(load_captioned_split(recipe, "train"), recipe, "train", ["beauty"])
    assert [rows.read(row).captions for row in (0, 1)] == ["one, two", "7"]
    assert [rows.read(row).label for row in (0, 1)] == [1, 0]
    assert [rows.read(row).fields for row in (0, 1)] == [{"beauty": 0.5}, {"beauty": None}]


def test_other_captions_are_texts_even_if_they_look_like_numbers(tmp_path):
    put_images(tmp_path, "a.png", "b.png")
    (tmp_path / "metadata.csv").write_text("file_name,text,label\na.png,one,1\nb.png,two,2")
    recipe = DataRecipe(path=str(tmp_path), other_caption_columns={"label": 0.5})
    rows = SplitRecords(load_captioned_split(recipe, "train"), recipe, "train")
    assert rows.read(1).all_captions == ("two", {"label": "2"})
    lines = [{"file_name": "a.png", "text": "one", "label": ["x\0", "y"]}, {"file_name": "b.png", "text": "two"}]
    (tmp_path / "metadata.csv").unlink()
    (tmp_path / "metadata.jsonl").write_text("\n".join(map(json.dumps, lines)))
    rows = SplitRecords(load_captioned_split(recipe, "train"), recipe, "train")
    assert [rows.read(row).all_captions for row in (0, 1)] == [
        ("one", {"label": ["x ", "y"]}),
        ("two", {"label": []}),
    ]
    (tmp_path / "metadata.jsonl").write_text(json.dumps({**lines[0], "label": 3}))
    with pytest.raises(ValueError, match=r"metadata.jsonl, line 1, `label`: a caption must be text"):
        load_captioned_split(recipe, "train")


def test_images_that_records_name_and_nobody_has_are_counted(tmp_path):
    put_images(tmp_path, "a.png", "b.png", captions=["a", "b"])
    (tmp_path / "b.png").unlink()
    recipe = DataRecipe(path=str(tmp_path))
    assert captions_of(tmp_path) == ["a"]
    assert "missing (b.png (" in open_source(recipe).describe()[-1]


def test_a_folder_of_links_that_lead_elsewhere_is_an_error(tmp_path):
    put_images(tmp_path / "elsewhere", "a.png")
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "a.png").symlink_to(tmp_path / "elsewhere" / "a.png")
    with pytest.raises(ValueError, match="nothing to train on; left out 1: links that lead out of the folder"):
        load_captioned_split(DataRecipe(path=str(tmp_path / "data"), caption=""), "train")


def test_images_and_their_texts_are_trained_on(tmp_path):
    put_images(tmp_path, "a.png", "b.png")
    (tmp_path / "a.txt").write_text("odd \0 text")
    (tmp_path / "b.txt").write_text("plain")
    images = open_training_images(DataRecipe(path=str(tmp_path)), 8)
    assert isinstance(images.skipped, SkipBudget)
    assert set(images.images.load([0, 1]).captions) == {"odd   text", "plain"}
