# SPDX-License-Identifier: Apache-2.0
"""What the files of a sample in a shard mean, whatever else is there."""

import pytest

from diffusers_mdm.training.data.reading import Request
from diffusers_mdm.training.data.shards.samples import (
    ListedSamples,
    TarSamples,
    first_shard_captions,
    iterate_shard_captions,
)
from diffusers_mdm.training.data.skip_budget import SkipBudget, UnusableSampleError
from diffusers_mdm.training.recipe.data import DataRecipe
from tests.training.image_files import png, write_tar


def read(folder, parts: dict, **fields):
    """The sample that has these parts, as a recipe with these fields reads it."""
    shard = str(write_tar(folder / "0.tar", [("a", parts)]))
    recipe = DataRecipe(shards=(shard,), **fields)
    return ListedSamples(recipe, [shard], SkipBudget(0)).read(0)


def test_the_text_file_is_the_caption_and_json_has_the_numbers(tmp_path):
    sample = read(tmp_path, {"txt": " a cat\n", "json": {"caption": "other", "beauty": 0.5}, "png": png()})
    assert sample.captions == "a cat"
    assert sample.fields["beauty"] == 0.5
    assert sample.image == png()
    assert sample.label is None


@pytest.mark.parametrize(
    ("parts", "fields", "captions"),
    [
        ({"json": {"caption": "a cat"}}, {}, "a cat"),
        ({"json": {"text": ["one", "two"]}}, {}, ["one", "two"]),
        ({"json": {"long": "a long one"}, "txt": "short"}, {"caption_column": "long"}, "a long one"),
        ({"txt": "not this"}, {"caption": "every time"}, "every time"),
        ({"txt": ""}, {}, ""),
    ],
)
def test_captions_are_found_where_the_recipe_says(tmp_path, parts, fields, captions):
    found = read(tmp_path, {"jpg": png(), **parts}, **fields).captions
    assert found == captions or list(found) == captions


@pytest.mark.parametrize(("parts", "label"), [({"cls": "7\n"}, 7), ({"json": {"cls": 3}}, 3), ({"cls": "-2"}, -2)])
def test_classes_are_files_or_fields(tmp_path, parts, label):
    assert read(tmp_path, {"jpg": png(), "txt": "", **parts}, label_column="cls").label == label


def test_the_first_kind_of_image_counts_or_the_one_that_is_named(tmp_path):
    parts = {"webp": b"second", "jpg": b"first", "seg.png": b"a mask", "txt": ""}
    assert read(tmp_path, parts).image == b"first"
    assert read(tmp_path, parts, image_column="SEG.png").image == b"a mask"


@pytest.mark.parametrize(
    ("parts", "fields", "message"),
    [
        ({"txt": "a cat"}, {}, r"no image \(it has \.txt\)"),
        ({"jpg": png(), "txt": ""}, {"video_column": "video"}, r"no clip, such as \.mp4"),
        ({"jpg": png()}, {}, r"no \.txt, nor"),
        ({"jpg": png(), "txt": "x"}, {"caption_column": "long"}, r"no field 'long' in \.json"),
        ({"jpg": png(), "txt": "x"}, {"other_caption_columns": {"long": 0.5}}, r"no field 'long' in \.json"),
        ({"jpg": png(), "txt": b"\xff\xfe"}, {}, r"\.txt is not UTF-8"),
        ({"jpg": png(), "json": "{"}, {}, r"\.json cannot be read"),
        ({"jpg": png(), "json": "[1]"}, {}, r"\.json holds a list"),
        ({"jpg": png(), "json": {"caption": 3}}, {}, "'caption' of its .json"),
        ({"jpg": png(), "txt": "", "cls": "cat"}, {"label_column": "cls"}, "'cat', expected an integer"),
    ],
)
def test_what_is_missing_or_broken_is_named(tmp_path, parts, fields, message):
    with pytest.raises(UnusableSampleError, match=message):
        read(tmp_path, parts, **fields)


def test_listed_samples_have_numbers_over_all_shards(tmp_path):
    shards = [
        str(write_tar(tmp_path / f"{s}.tar", [(f"{s}{n}", {"txt": f"{s} {n}"}) for n in (0, 1)])) for s in (0, 1)
    ]
    recipe = DataRecipe(shards=tuple(shards))
    samples = ListedSamples(recipe, shards, SkipBudget(0))
    assert len(samples) == 4
    assert [TarSamples(recipe).captions(sample).main for sample in samples.samples] == ["0 0", "0 1", "1 0", "1 1"]
    assert samples.name(2).endswith("1.tar:10")
    assert list(samples.substitutes(2, Request([0], [2]))) == [3, 0, 1]


def test_captions_are_listed_as_training_finds_them(tmp_path):
    samples = [("a", {"txt": "one"}), ("b", {"json": {"caption": ["two", "three"]}}), ("c", {"jpg": png()})]
    shard = str(write_tar(tmp_path / "0.tar", samples))
    assert list(iterate_shard_captions(DataRecipe(shards=(shard,)), [shard])) == ["one", "two", "three"]
    assert list(first_shard_captions(DataRecipe(shards=(shard,)), [shard])) == ["one", "two"]


def test_other_captions_are_fields_of_json(tmp_path):
    parts = {"jpg": png(), "txt": "a frog", "json": {"label": "frog", "words": ["x", "y"], "none": None}}
    fields = {"other_caption_columns": {"label": 0.5, "words": 0.25, "none": 0.1}}
    assert read(tmp_path, parts, **fields).all_captions == (
        "a frog",
        {"label": "frog", "words": ["x", "y"], "none": ""},
    )
    shard = str(tmp_path / "0.tar")
    recipe = DataRecipe(shards=(shard,), **fields)
    assert list(iterate_shard_captions(recipe, [shard])) == ["a frog", "frog", "x", "y", ""]
    assert list(first_shard_captions(recipe, [shard])) == ["a frog"]


def test_a_set_without_samples_is_refused(tmp_path):
    shard = str(write_tar(tmp_path / "0.tar", []))
    with pytest.raises(ValueError, match=r"no samples in .*0\.tar"):
        ListedSamples(DataRecipe(shards=(shard,)), [shard], SkipBudget(0))
