# SPDX-License-Identifier: Apache-2.0
"""A call's arguments are read once: brought to one type each, or refused with what was expected."""

import math

import numpy as np
import pytest
import torch
from diffusers.callbacks import SDCFGCutoffCallback

from diffusers_mdm.pipelines.drawing.request import Request, describe, is_number, is_whole, read_call, whole_numbers
from tests.pipelines.tiny_pipeline import seed


def test_numbers_of_numpy_are_numbers():
    request = read_call(
        {"guidance_scale": np.float32(2.5), "num_inference_steps": np.int64(3), "return_dict": np.True_}
    )
    assert request.guidance_scale == 2.5
    assert type(request.num_inference_steps) is int
    assert request.return_dict is True


def test_lists_of_any_kind_are_lists():
    given = read_call({"timesteps": np.array([30, 20]), "generator": (seed(0), seed(1))})
    assert given.timesteps == [30, 20]
    assert isinstance(given.generator, list)
    for steps in (torch.tensor([3, 1]), range(3, 0, -2), (3.0, 1), [np.int64(3), 1]):
        assert whole_numbers(steps) == [3, 1]
    for wrong in ([], [1.5], "31", [[3]], torch.zeros(1, 2), torch.tensor([True]), [math.inf], None):
        assert whole_numbers(wrong) is None


@pytest.mark.parametrize("name", ["num_images_per_prompt", "num_images_per_label", "num_videos_per_prompt"])
def test_the_number_of_copies_by_any_name(name):
    request = read_call({"self": object(), name: 3})
    assert (request.copies, request.copies_name) == (3, name)


def test_a_callback_of_diffusers_says_itself_what_it_wants():
    callback = SDCFGCutoffCallback(cutoff_step_ratio=0.5)
    request = read_call({"callback_on_step_end": callback, "callback_on_step_end_tensor_inputs": ["latents"]})
    assert request.callback_on_step_end_tensor_inputs == ["prompt_embeds"]


def test_prompts_are_counted():
    assert Request(prompt="a").num_prompts == 1
    assert Request(prompt=["a", "b"]).num_prompts == 2
    assert Request(prompt_embeds=torch.zeros(3, 1, 4)).num_prompts == 3
    assert not Request(class_labels=3).has_text
    assert Request(negative_prompt="a").has_text


@pytest.mark.parametrize("value", [True, "3", 3.5, None, 1 + 0j, 0])
def test_what_is_no_whole_number_of_at_least_1(value):
    assert not is_whole(value, 1)


@pytest.mark.parametrize("value", [True, "3", math.nan, math.inf, None, 1j, 10**400, -0.5, 1.5])
def test_what_is_no_number_from_0_to_1(value):
    assert not is_number(value, 0, 1)


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        (16.0, "16.0 (float)"),
        (None, "None"),
        ("a" * 200, f"'{'a' * 79} ..."),
        ([1, "a"], "a list of int, str"),
        ((), "an empty tuple"),
        (np.zeros((2, 3)), "ndarray of shape (2, 3) and type float64"),
        (torch.zeros(2, device="meta"), "Tensor of shape (2,) and type torch.float32 on meta"),
        ({}, "of type dict"),
    ],
)
def test_wrong_values_are_shown_shortly(value, shown):
    assert describe(value) == shown
