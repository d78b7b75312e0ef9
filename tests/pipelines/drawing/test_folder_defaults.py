# SPDX-License-Identifier: Apache-2.0
"""A pipeline's folder says which settings suit its model, and calls take them where they say nothing."""

import json

import pytest
import torch

from diffusers_mdm import MDMClassConditionalPipeline, MDMImg2ImgPipeline, MDMPipeline, MDMUpscalePipeline
from diffusers_mdm.pipelines.drawing.request import (
    PUBLISHED_DEFAULTS,
    UPSCALE_DEFAULTS,
    Request,
    check_defaults,
    fill_in,
)
from tests.pipelines.tiny_pipeline import make_pipeline, make_scheduler, seed

OWN = {"num_inference_steps": 3, "guidance_scale": 2.0, "upscale_guidance_scale": 1.5}


def drawn_with(pipe, *args, **settings) -> tuple[int, float]:
    """Steps and guidance of a drawing, as a callback sees them."""
    seen = []

    def note(pipeline, step, timestep, tensors):
        seen.append((pipeline.num_timesteps, pipeline.guidance_scale))
        pipeline._interrupt = True
        return {}

    pipe.set_progress_bar_config(disable=True)
    pipe("a red apple", *args, generator=seed(0), output_type="pt", callback_on_step_end=note, **settings)
    return seen[0]


def with_defaults(defaults):
    return MDMPipeline(**make_pipeline().components, drawing_defaults=defaults)


def test_calls_take_what_the_folder_says_and_arguments_go_first(tmp_path):
    with_defaults(OWN).save_pretrained(tmp_path)
    assert json.loads((tmp_path / "model_index.json").read_text())["drawing_defaults"] == OWN
    pipe = MDMPipeline.from_pretrained(tmp_path)
    assert drawn_with(pipe) == (3, 2.0)
    assert drawn_with(pipe, num_inference_steps=4) == (4, 2.0)
    assert drawn_with(pipe, guidance_scale=5) == (3, 5.0)


def test_folders_that_say_nothing_draw_as_published(tmp_path):
    make_pipeline().save_pretrained(tmp_path)
    assert "drawing_defaults" not in (tmp_path / "model_index.json").read_text()
    assert drawn_with(MDMPipeline.from_pretrained(tmp_path)) == (50, 7.5)
    assert drawn_with(with_defaults({"num_inference_steps": 2})) == (2, 7.5)
    assert MDMClassConditionalPipeline._published_defaults == {**PUBLISHED_DEFAULTS, "guidance_scale": 4.0}


def test_other_pipelines_take_them_over_and_upscaling_its_own():
    pipe, small = with_defaults(OWN), torch.zeros(3, 8, 8)
    img2img = MDMImg2ImgPipeline.from_pipe(pipe)
    assert drawn_with(img2img, small, strength=1.0) == (3, 2.0)
    upscale = MDMUpscalePipeline.from_pipe(img2img)
    assert drawn_with(upscale, small) == (3, 1.5)
    assert drawn_with(MDMPipeline.from_pipe(upscale)) == (3, 2.0)


def test_only_what_was_left_open_is_filled_in():
    request = Request(num_inference_steps=7)
    fill_in(request, make_scheduler(), None, PUBLISHED_DEFAULTS, "upscale_")
    assert (request.num_inference_steps, request.guidance_scale, request.num_resampling_steps) == (7, 7.5, 1)


@pytest.mark.parametrize(("algorithm", "expected"), [("ddim", 1.0), ("dpmsolver++", 0.0)])
def test_a_solver_without_noise_is_not_asked_for_any(algorithm, expected):
    request = Request(eta=None)
    fill_in(request, make_scheduler(algorithm=algorithm), {"upscale_eta": 1.0}, UPSCALE_DEFAULTS, "upscale_")
    assert request.eta == expected


@pytest.mark.parametrize(
    ("defaults", "message"),
    [
        ([1], "has to be a dict such as"),
        (
            {"steps": 3},
            "has 'steps'; it can have num_inference_steps, guidance_scale, num_resampling_steps, ",
        ),
        ({"num_inference_steps": 0}, "`num_inference_steps` has to be"),
        ({"upscale_guidance_scale": float("nan")}, "`guidance_scale` has to be a finite number"),
        ({"guidance_scale": None}, "has None for 'guidance_scale'"),
    ],
)
def test_other_settings_are_refused(defaults, message):
    with pytest.raises(ValueError, match=message):
        check_defaults(defaults)


def test_no_settings_are_none():
    assert check_defaults(None) is check_defaults({}) is None
