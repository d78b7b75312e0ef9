# SPDX-License-Identifier: Apache-2.0
"""A prompt as the levels see it can be cut to fewer rows and moved, with everything that belongs to it."""

import dataclasses

import pytest
import torch
from accelerate.utils import send_to_device

from diffusers_mdm import TextConditioning


@pytest.fixture(params=[True, False], ids=["whole", "without mask and keys"])
def text(request: pytest.FixtureRequest) -> TextConditioning:
    keys = ((torch.randn(3, 5, 2, 4), torch.randn(3, 5, 2, 4)),)
    mask = torch.ones(3, 5, dtype=torch.bool)
    return TextConditioning(
        torch.randn(3, 5, 8), torch.randn(3, 16), mask if request.param else None, keys if request.param else None
    )


def tensors_of(text: TextConditioning) -> list[torch.Tensor]:
    plain = [text.hidden_states, text.pooled, text.attention_mask]
    return [value for value in plain if value is not None] + [part for pair in text.keys_values or () for part in pair]


def test_everything_moves(text):
    moved = text.to("meta")
    assert {value.device.type for value in tensors_of(moved)} == {"meta"}
    assert len(tensors_of(moved)) == len(tensors_of(text))
    assert {value.dtype for value in tensors_of(moved)} == {value.dtype for value in tensors_of(text)}


def test_hooks_of_accelerate_move_it(text):
    moved = send_to_device((text, 1), torch.device("meta"))[0]
    assert {value.device.type for value in tensors_of(moved)} == {"meta"}


def test_first_rows_are_those_of_every_part(text):
    fewer = text.first_rows(2)
    for value, whole in zip(tensors_of(fewer), tensors_of(text), strict=True):
        assert torch.equal(value, whole[:2])
    assert text.first_rows(3) is text
    assert {field.name for field in dataclasses.fields(text)} == {
        "hidden_states",
        "pooled",
        "attention_mask",
        "keys_values",
    }
