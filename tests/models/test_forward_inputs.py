# SPDX-License-Identifier: Apache-2.0
"""A prompt as the levels see it can be cut to fewer rows and moved, with everything that belongs to it; whatever a
call says, the answer is a prediction, or a ValueError or TypeError of ours.
"""

import dataclasses
from typing import Any

import numpy as np
import pytest
import torch
from accelerate.utils import send_to_device
from torch._subclasses.fake_tensor import FakeTensorMode

from diffusers_mdm import NestedUNetModel, TextConditioning
from diffusers_mdm.models.forward_inputs import StepEmbedding, check_classes, micro_conditions, modulations_of
from tests.pipelines.tiny_pipeline import TEXT_WIDTH, make_unet


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
    fewer = text.first_samples(2)
    for value, whole in zip(tensors_of(fewer), tensors_of(text), strict=True):
        assert torch.equal(value, whole[:2])
    assert text.first_samples(3) is text
    assert {field.name for field in dataclasses.fields(text)} == {
        "hidden_states",
        "pooled",
        "attention_mask",
        "keys_values",
    }


@pytest.fixture(scope="module")
def unet() -> NestedUNetModel:
    return make_unet(num_class_embeds=4)


def good_call() -> dict[str, Any]:
    return {
        "sample": [torch.randn(2, 3, 8, 8), torch.randn(2, 3, 16, 16)],
        "timestep": torch.tensor([1, 2]),
        "encoder_hidden_states": torch.randn(2, 4, TEXT_WIDTH),
        "encoder_attention_mask": torch.ones(2, 4),
        "class_labels": torch.tensor([0, 3]),
        "added_cond_kwargs": {"scale": torch.tensor([8.0, 16.0])},
    }


BAD_CALLS: dict[str, tuple[dict[str, Any], str]] = {
    "sample of numpy": ({"sample": np.zeros((2, 3, 8, 8))}, "a tensor or a list of tensors"),
    "whole numbers": ({"sample": torch.zeros(2, 3, 8, 8, dtype=torch.int64)}, "floating-point"),
    "no sample": ({"sample": None}, "a tensor or a list of tensors"),
    "no timestep": ({"timestep": None}, "`timestep` is None"),
    "text as timestep": ({"timestep": "5"}, "`timestep` is '5'"),
    "infinite timestep": ({"timestep": float("inf")}, "`timestep` is inf"),
    "timesteps of others": ({"timestep": [1, 2, 3]}, "one for each of the 2"),
    "timesteps of text": ({"timestep": ["a", "b"]}, "`timestep` is"),
    "flags as timesteps": ({"timestep": torch.tensor([True, False])}, "torch.bool"),
    "numpy states": ({"encoder_hidden_states": np.zeros((2, 4, TEXT_WIDTH))}, "`encoder_hidden_states` is"),
    "a prompt": ({"encoder_hidden_states": "a red apple"}, "`encoder_hidden_states` is 'a red apple'"),
    "no tokens": ({"encoder_hidden_states": torch.randn(2, 0, TEXT_WIDTH)}, "encoder_hidden_states"),
    "list as mask": ({"encoder_attention_mask": [[1, 1, 1, 1]] * 2}, "`encoder_attention_mask` is"),
    "flat mask": ({"encoder_attention_mask": torch.ones(4)}, "encoder_attention_mask"),
    "names of classes": ({"class_labels": ["cat", "dog"]}, "`class_labels` is"),
    "fractions of classes": ({"class_labels": torch.tensor([0.5, 1.5])}, "whole numbers"),
    "classes beyond": ({"class_labels": torch.tensor([0, 4])}, "run from 0 to 4; expected 0 to 3"),
    "negative class": ({"class_labels": torch.tensor([-1, 0])}, "run from -1"),
    "conditions of a list": ({"added_cond_kwargs": [8.0]}, "`added_cond_kwargs` is a list"),
    "no value": ({"added_cond_kwargs": {"scale": None}}, "`scale` is None"),
    "text as scale": ({"added_cond_kwargs": {"scale": "big"}}, "`scale` is 'big'"),
    "unknown condition": ({"added_cond_kwargs": {"size": 8}}, r"Unknown keys \['size'\]"),
}


@torch.no_grad()
def test_a_good_call_passes(unet):
    assert len(unet(**good_call()).sample) == 2
    assert len(unet(**{**good_call(), "timestep": 5, "added_cond_kwargs": {"scale": [8, 16]}}).sample) == 2


@torch.no_grad()
@pytest.mark.parametrize(("change", "message"), BAD_CALLS.values(), ids=list(BAD_CALLS))
def test_a_bad_call_is_refused_in_a_sentence(unet, change, message):
    with pytest.raises((ValueError, TypeError), match=message):
        unet(**{**good_call(), **change})


def test_labels_without_values_are_taken():
    with FakeTensorMode():
        check_classes(torch.zeros(2, dtype=torch.int64), 4)  # as when memory is estimated
    check_classes(torch.zeros(2, dtype=torch.int64, device="meta"), 4)


def test_outer_levels_have_the_embeddings_of_the_first_samples():
    layers = tuple((torch.randn(3, 4), torch.randn(3, 4)) for _ in range(2))
    step = StepEmbedding(torch.tensor([7, 7, 7]), ((), layers))
    assert modulations_of(step, 1, 3) is layers
    assert modulations_of(7, 1, 3) is None
    for (scale, shift), (ours, theirs) in zip(layers, modulations_of(step, 1, 2), strict=True):
        assert torch.equal(ours, scale[:2])
        assert torch.equal(theirs, shift[:2])


def test_micro_conditions_are_given_to_every_batch_row():
    values = micro_conditions({"scale": 8}, ["scale"], 3, torch.device("cpu"))
    assert values["scale"].tolist() == [8, 8, 8]
    assert micro_conditions(None, ["scale"], 3, torch.device("cpu")) == {}


def test_embeddings_of_too_few_levels_are_named():
    step = StepEmbedding(torch.tensor([7]), ((),))
    with pytest.raises(ValueError, match=r"embedded for 1 levels, but level 1 of `sample`.*embed_timesteps"):
        modulations_of(step, 1, 1)
