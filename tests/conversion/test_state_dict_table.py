# SPDX-License-Identifier: Apache-2.0
"""Renaming, splitting and reshaping state dicts by a table, there and back."""

import time

import pytest
import torch

from diffusers_mdm.conversion.state_dict_table import (
    MAX_LEVELS,
    Row,
    StateDictTable,
    check_names,
    count_levels,
    inner_levels,
)

TABLE = StateDictTable(
    [
        Row("conv", ("first",)),
        Row("blocks.{i}.qkv", ("layers.{i}.q", "layers.{i}.k", "layers.{i}.v"), pointwise=True),
    ],
    [Row("text", ("words",))],
    unused=("dead",),
)
FOREIGN = {
    "conv.weight": torch.randn(4),
    "blocks.2.qkv.weight": torch.randn(6, 5, 1, 1),
    "inner_unet.blocks.0.qkv.bias": torch.randn(9),
    "inner_unet.text.weight": torch.randn(3),
}


def test_names_follow_the_table_and_come_back():
    native, unused = TABLE.to_native({**FOREIGN, "dead.weight": torch.ones(1)})
    assert list(unused) == ["dead.weight"]
    assert {name: tuple(tensor.shape) for name, tensor in native.items()} == {
        "levels.1.first.weight": (4,),
        **{f"levels.1.layers.2.{part}.weight": (2, 5) for part in "qkv"},
        **{f"levels.0.layers.0.{part}.bias": (3,) for part in "qkv"},
        "words.weight": (3,),
    }
    back = TABLE.to_foreign(native)
    assert back.keys() == FOREIGN.keys()
    assert all(torch.equal(back[name], tensor) for name, tensor in FOREIGN.items())


@pytest.mark.parametrize(
    ("name", "shape", "message"),
    [
        ("other.weight", (1,), "1 unknown tensors: other.weight"),
        ("text.weight", (1,), "unknown tensors: text.weight"),  # belongs to the innermost level
        ("blocks.0.qkv.weight", (7, 5, 1, 1), "3 equal parts"),
        ("blocks.0.qkv.weight", (6, 5, 3, 3), "1x1 convolution"),
        ("blocks.0.qkv.bias", (), "1x1 convolution"),
    ],
)
def test_what_has_no_row_or_another_shape_is_refused(name, shape, message):
    with pytest.raises(ValueError, match=message):
        TABLE.to_native({**FOREIGN, name: torch.zeros(shape)})


def test_parts_that_are_missing_are_named():
    native, _ = TABLE.to_native(FOREIGN)
    native.pop("levels.1.layers.2.k.weight")
    with pytest.raises(ValueError, match=r"blocks\.2\.qkv\.weight cannot be assembled: .*k is missing"):
        TABLE.to_foreign(native)
    with pytest.raises(ValueError, match=r"no place for 1 tensors: levels\.1\.new\.weight"):
        TABLE.to_foreign({"levels.1.new.weight": torch.zeros(1)})


def test_inner_levels_alone():
    assert count_levels(FOREIGN) == 2
    assert list(inner_levels(FOREIGN, 1)) == ["blocks.0.qkv.bias", "text.weight"]
    assert inner_levels(FOREIGN, 2) == FOREIGN
    for number in (0, 3):
        with pytest.raises(ValueError, match=f"has 2 levels, so {number} of them"):
            inner_levels(FOREIGN, number)


def test_names_that_no_model_has_are_refused_at_once():
    start = time.process_time()
    with pytest.raises(ValueError, match="name of 4400006 characters"):
        count_levels({"inner_unet." * 400_000 + "weight": torch.ones(1)})
    with pytest.raises(ValueError, match=f"nests 18 levels; expected at most {MAX_LEVELS}"):
        count_levels({"inner_unet." * 17 + "weight": torch.ones(1)})
    for wrong, message in (({}, "no named tensors"), ({1: torch.ones(1)}, "no named"), ({"a": 1}, "not tensors: a")):
        with pytest.raises(ValueError, match=message):
            check_names(wrong)
    assert time.process_time() - start < 10
