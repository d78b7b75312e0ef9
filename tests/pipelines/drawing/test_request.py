# SPDX-License-Identifier: Apache-2.0
"""A call's arguments are read once: brought to one type each, or refused with what was expected."""

import math

import numpy as np
import pytest
import torch
from diffusers.callbacks import SDCFGCutoffCallback

from diffusers_mdm.pipelines.drawing.request import Request, read_call, whole_numbers
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
