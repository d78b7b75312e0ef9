# SPDX-License-Identifier: Apache-2.0
"""Generating inner levels first: they equal those of a drawing without outer levels, and the outer levels fit them."""

import pytest
import torch

from diffusers_mdm import MDMPipeline, MDMVideoPipeline
from diffusers_mdm.pyramid import build_pyramid, pyramid_noise
from tests.pipelines.exact_denoiser import draw_exactly, make_exact_pipeline
from tests.pipelines.tiny_pipeline import draw, make_pipeline, seed
from tests.pipelines.tiny_tasks import EVEN_CLIPS, task


def test_the_inner_level_has_its_own_number_of_steps():
    pipe = make_exact_pipeline()
    draw_exactly(pipe, num_inner_steps=12, num_inference_steps=3)
    assert pipe.unet.calls == [1] * 12 + [2] * 3
    assert pipe.num_timesteps == 3


def test_the_inner_level_is_that_of_a_drawing_of_its_own_and_the_average_of_the_outer_one():
    pipe = make_pipeline()
    noise = [torch.randn(1, 3, side, side, generator=seed(side)) for side in (8, 16)]
    alone = draw(pipe, height=8, latents=noise[0], num_inference_steps=5, output_type="latent")
    inner, outer = pipe(
        "a red apple",
        latents=noise,
        num_inner_steps=5,
        num_inference_steps=3,
        guidance_scale=3.0,
        generator=seed(1),
        output_type="latent",
        output_pyramid=True,
    ).pyramid
    torch.testing.assert_close(inner, alone.clamp(-1, 1), atol=1e-4, rtol=0)
    torch.testing.assert_close(torch.nn.functional.avg_pool2d(outer, 2), inner, atol=1e-4, rtol=0)


def test_the_inner_levels_of_a_clip_are_among_the_frames_of_the_outer_ones():
    # 1 frame of 8 pixels, 4 frames of 8, 4 frames of 16.
    pipe = task("video").make()
    noise = pyramid_noise([(1, 3, 1, 8, 8), (1, 3, 4, 8, 8), (1, 3, 4, 16, 16)], seed(0))
    settings = {"guidance_scale": 3.0, "output_type": "latent"}
    alone = pipe("a red apple", latents=noise[0], num_inference_steps=4, **settings).frames
    inner, middle, outer = pipe(
        "a red apple",
        latents=noise,
        num_inner_steps=[4, 3],
        num_inference_steps=2,
        generator=seed(1),
        output_pyramid=True,
        **settings,
    ).pyramid
    torch.testing.assert_close(inner, alone.clamp(-1, 1), atol=1e-4, rtol=0)
    for level, expected in zip(build_pyramid(outer, (8, 8, 16), (1, 4, 4)), (inner, middle, outer), strict=True):
        torch.testing.assert_close(level, expected, atol=1e-4, rtol=0)
    assert (middle[:, :, 1:] - middle[:, :, :1]).abs().amax(dim=(0, 1, 3, 4)).min() > 0.01


def test_a_single_frame_is_that_of_an_image():
    clips = MDMVideoPipeline.from_pipe(make_pipeline(**EVEN_CLIPS))
    clips.set_progress_bar_config(disable=True)
    settings = {"num_inner_steps": 3, "num_inference_steps": 2, "guidance_scale": 3.0, "output_type": "pt"}
    frame = clips("a red apple", num_frames=1, generator=seed(0), **settings).frames[:, 0]
    images = MDMPipeline.from_pipe(clips)("a red apple", generator=seed(0), **settings).images
    torch.testing.assert_close(images, frame, atol=1e-5, rtol=0)


def test_an_exact_denoiser_gives_the_exact_moments():
    pipe = make_exact_pipeline()
    # Clean levels of a model of pixels are in [-1, 1]; these are almost always.
    inner, outer = draw_exactly(pipe, 4000, num_inner_steps=20, num_inference_steps=20, eta=0.0)
    everywhere = draw_exactly(pipe, 4000)
    assert inner.std().item() == pytest.approx(everywhere[0].std().item(), rel=0.06)
    assert outer.std().item() == pytest.approx(everywhere[1].std().item(), rel=0.06)
    torch.testing.assert_close(torch.nn.functional.avg_pool2d(outer, 2), inner, atol=1e-4, rtol=0)


@pytest.mark.parametrize("name", ["text", "class", "latent text", "video", "latent video"])
def test_an_image_does_not_depend_on_its_batch(name):
    kind = task(name)
    pipe = kind.make()
    settings = {"num_inner_steps": 2, "guider": {"name": "projected", "momentum": -0.5}}
    together = kind.draw(pipe, slice(None), **settings)
    assert together.shape[1:] == kind.shape
    torch.testing.assert_close(kind.draw(pipe, 1, **settings), together[1:2], atol=2e-4, rtol=0)


def test_numbers_for_levels_that_are_not_generated_are_ignored():
    pipe = make_pipeline()
    inner = draw(pipe, height=8)
    assert torch.equal(draw(pipe, height=8, num_inner_steps=4), inner)
    assert torch.equal(draw(pipe, num_inner_steps=[4, 3]), draw(pipe, num_inner_steps=4))


def test_callbacks_are_called_in_both_drawings():
    pipe, seen = make_pipeline(), []

    def note(pipeline, step, timestep, tensors):
        seen.append((step, len(tensors["latents"])))

    draw(pipe, num_inner_steps=3, callback_on_step_end=note)
    assert seen == [(0, 1), (1, 1), (2, 1), (0, 2), (1, 2)]


@pytest.mark.parametrize("value", [0, -1, 2.5, True, "many", [3, 0], []])
def test_wrong_numbers_are_refused(value):
    with pytest.raises(ValueError, match="`num_inner_steps` has to be a whole number of at least 1, or a list"):
        draw(make_pipeline(), num_inner_steps=value)
