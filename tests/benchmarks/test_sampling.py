# SPDX-License-Identifier: Apache-2.0
"""The measures see what they are there to see, costs are counted, and every setting is one that can be drawn."""

import math

import pytest
import sampling
import torch

from diffusers_mdm.pipelines.drawing.guidance.registry import method_of
from diffusers_mdm.pipelines.drawing.request import check_argument
from diffusers_mdm.schedulers import MatryoshkaScheduler
from tests.pipelines.tiny_pipeline import make_pipeline


def test_true_images_have_no_error():
    images = torch.full((3, 3, 16, 16), 255, dtype=torch.uint8)
    images[0, :, 4:12, 4:12] = 0
    truth = sampling.Truth(list("abc"), images, sampling.thumbnail(images), list("abc"))
    small = torch.nn.functional.avg_pool2d(images.float(), 2).to(torch.uint8)
    assert sampling.measure([small, images], truth) == {"noise": 0.0, "distance": 0.0, "own": 1.0, "levels": 0.0}
    grey = (images.float() * 0.9).to(torch.uint8)
    assert sampling.measure([small, grey], truth)["distance"] == pytest.approx(0.1, abs=0.01)


def test_errors_of_differences_are_paired():
    first = [dict.fromkeys(sampling.MEASURES, value) for value in (1.0, 2.0, 3.0)]
    better = [{key: value - 0.5 for key, value in entry.items()} for entry in first]
    summary = sampling.summarised("better", better, first)
    assert summary["noise"] == [1.5, pytest.approx(1 / 3**0.5)]
    assert summary["noise difference"] == [-0.5, pytest.approx(0.0)]
    assert math.isnan(sampling.standard_error([1.0]))


def test_what_waits_or_is_reused_costs_less():
    pipe = make_pipeline()
    whole = sampling.costs(pipe, sampling.drawn_in(4, {}), "a red apple")
    assert whole["calls"] == 8  # with guidance
    for cheaper in (sampling.drawn_in(4, {}, open_levels_at=0.0), sampling.drawn_in(4, {}, 2)):
        assert sampling.costs(pipe, cheaper, "a red apple")["gigaflops"] < whole["gigaflops"]


@pytest.mark.parametrize("name", sampling.SETTINGS)
def test_settings_can_be_drawn(name):
    setting = sampling.SETTINGS[name]
    MatryoshkaScheduler(**setting.scheduler)
    for argument, value in setting.call.items():
        check_argument(argument, value)
    method_of(setting.call.get("guider"))
