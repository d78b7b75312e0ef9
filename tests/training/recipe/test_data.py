# SPDX-License-Identifier: Apache-2.0
"""Each kind of data has its own fields; what was written before there were kinds is still read."""

import dataclasses

import pytest

from diffusers_mdm.training.recipe.data import DATA_KINDS, DataRecipe, ShardData, TableData
from diffusers_mdm.training.recipe.fields import read_fields

# What `recipe.json` held before there were kinds: all fields of both.
EARLIER = {
    "path": None,
    "shards": None,
    "config_name": None,
    "train_split": "train",
    "validation_split": None,
    "validation_shards": None,
    "image_column": "image",
    "max_train_samples": None,
    "shuffle_buffer": 1000,
    "center_crop": False,
}


def test_the_place_tells_the_kind():
    assert DataRecipe(path="images") == TableData(path="images")
    assert DataRecipe(shards=("0.tar",), shuffle_buffer=5) == ShardData(shards=("0.tar",), shuffle_buffer=5)
    assert len({kind.place for kind in DATA_KINDS}) == len(DATA_KINDS)


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        (
            {"path": "images", "max_train_samples": 7},
            TableData(path="images", max_train_samples=7, center_crop=False),
        ),
        (
            {"shards": ["0.tar"], "shuffle_buffer": 9},
            ShardData(shards=("0.tar",), shuffle_buffer=9, center_crop=False),
        ),
    ],
)
def test_recipes_that_people_wrote_before_still_load(fields, expected):
    assert read_fields(DataRecipe, {**EARLIER, **fields}, "data") == expected


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({}, "`data` cannot be read: set either `path` .* or `shards`"),
        ({"path": "a", "shards": ["b"]}, "set either `path`"),
        (
            {"path": "a", "shuffle_buffer": 5},
            "`shuffle_buffer` belongs to data with `shards`, not to data with `path`: omit it",
        ),
        ({"path": "a", "validation_shards": ["b"]}, "belongs to data with `shards`.*: name a `validation_split`"),
        (
            {"shards": ["a"], "max_train_samples": 5},
            "belongs to data with `path`, not to data with `shards`: name fewer shards",
        ),
        ({"shards": ["a"], "validation_split": "x"}, "name others as `validation_shards`"),
        (
            {"path": "a", "caption_colum": "b"},
            r"`data\.caption_colum` is not a known field; did you mean `caption_column`",
        ),
    ],
)
def test_fields_of_another_kind_say_where_they_belong(fields, message):
    with pytest.raises(ValueError, match=message):
        read_fields(DataRecipe, fields, "data")


def test_another_place_makes_data_of_its_kind_and_keeps_what_all_kinds_have():
    table = TableData(path="a", max_train_samples=3, center_crop=False, caption="one")
    streamed = table.with_fields(shards=("0.tar",))
    assert streamed == ShardData(shards=("0.tar",), center_crop=False, caption="one")
    assert streamed.with_fields(path="b", shards=None) == TableData(path="b", center_crop=False, caption="one")
    assert table.with_fields(path="b").max_train_samples == 3
    with pytest.raises(ValueError, match="name fewer shards"):
        streamed.with_fields(max_train_samples=5)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"other_caption_columns": {"label": 1.0}}, "has 1.0 for 'label'; expected a fraction .* above 0 and below 1"),
        ({"other_caption_columns": {"label": 0.0}}, "has 0.0 for 'label'"),
        ({"other_caption_columns": {"label": -0.5}}, "has -0.5 for 'label'"),
        ({"other_caption_columns": {"label": 0.75, "words": 0.5}}, "have the sum 1.25, expected at most 1"),
        ({"other_caption_columns": {"text": 0.5}}, "has 'text', which is the `caption_column`"),
        ({"other_caption_columns": {"label": 0.5}, "caption": "one"}, "`caption` is 'one' for every sample"),
        ({"other_caption_columns": {"label": "half"}}, r"`data\.other_caption_columns\.label` must be a number"),
        ({"other_caption_columns": "label"}, r"`data\.other_caption_columns` must be a mapping"),
    ],
)
@pytest.mark.parametrize("place", [{"path": "a"}, {"shards": ["a"]}])
def test_shares_of_other_caption_columns_are_checked(place, fields, message):
    with pytest.raises(ValueError, match=message):
        read_fields(DataRecipe, {**place, **fields}, "data")


def test_other_caption_columns_are_for_training():
    shares = {f"column {number}": 0.1 for number in range(10)}  # together 1, up to rounding
    data = TableData(path="a", other_caption_columns=shares)
    assert data.caption_columns == ("text", *shares)
    assert data.with_main_captions() == TableData(path="a")
    assert data.with_fields(shards=("0.tar",)).other_caption_columns == shares


def test_names_of_places_move_and_nothing_else():
    def move(name: str) -> str:
        return f"../{name}"

    for data in (
        TableData(path="a", embeddings_dir="e"),
        ShardData(shards=("a", "b"), validation_shards=("c",), embeddings_dir="e"),
    ):
        moved = data.relocated(move, move)
        different = {name for name, value in dataclasses.asdict(data).items() if getattr(moved, name) != value}
        assert different == {data.place, "embeddings_dir"} | ({"validation_shards"} & dataclasses.asdict(data).keys())
        assert moved.origin().names == tuple(map(move, data.origin().names))
