# SPDX-License-Identifier: Apache-2.0
"""Text to video: which levels are drawn, single frames, what diffusers' video writer takes."""

import imageio.v3
import numpy as np
import pytest
import torch
from diffusers.utils import export_to_video

from diffusers_mdm import MDMPipeline, MDMVideoPipeline
from diffusers_mdm.pyramid import pyramid_noise
from tests.pipelines.tiny_pipeline import make_pipeline, seed
from tests.pipelines.tiny_tasks import EVEN_CLIPS, task


@pytest.fixture(scope="module")
def pipe() -> MDMVideoPipeline:
    return task("video").make()


def draw(pipe, **changes):
    settings = {"num_inference_steps": 2, "guidance_scale": 3.0, "generator": seed(0), "output_type": "pt"}
    return pipe("a red apple", **{**settings, **changes}).frames


def test_sizes_and_frames_choose_the_levels(pipe):
    assert draw(pipe).shape == (1, 4, 3, 16, 16)
    assert draw(pipe, num_frames=4).shape == (1, 4, 3, 16, 16)
    assert draw(pipe, height=16, width=8).shape == (1, 4, 3, 16, 8)
    assert draw(pipe, height=8).shape == (1, 4, 3, 8, 8)
    assert draw(pipe, num_frames=1).shape == draw(pipe, num_frames=1, height=8).shape == (1, 1, 3, 8, 8)


def test_latents_are_the_starting_noise(pipe):
    noise = pyramid_noise([(1, 3, 1, 8, 8), (1, 3, 4, 8, 8), (1, 3, 4, 16, 16)], seed(0))
    assert torch.equal(draw(pipe, latents=noise, generator=None), draw(pipe))
    assert torch.equal(draw(pipe, latents=noise[:2], generator=None), draw(pipe, height=8))
    assert draw(pipe, output_type="latent").shape == (1, 3, 4, 16, 16)


def test_frames_differ(pipe):
    frames = draw(pipe)[0]
    assert not torch.equal(frames[0], frames[1])


def test_single_frames_where_no_level_resamples_them():
    pipe = MDMVideoPipeline.from_pipe(make_pipeline(**EVEN_CLIPS))
    pipe.set_progress_bar_config(disable=True)
    assert draw(pipe).shape == (1, 4, 3, 16, 16)
    still = draw(pipe, num_frames=1)
    assert still.shape == (1, 1, 3, 16, 16)
    images = MDMPipeline.from_pipe(pipe)
    settings = {"num_inference_steps": 2, "guidance_scale": 3.0, "generator": seed(0), "output_type": "pt"}
    torch.testing.assert_close(images("a red apple", **settings).images, still[:, 0], atol=1e-5, rtol=0)


def test_images_do_not_go_through_levels_that_resample_frames(pipe):
    images = MDMPipeline.from_pipe(pipe)
    assert len(images("a cat", height=8, num_inference_steps=1).images) == 1
    with pytest.raises(ValueError, match=r"levels have 1, 4, 4 frames .* MDMVideoPipeline"):
        images("a cat")


@pytest.mark.parametrize("kind", ["pil", "np"])
def test_diffusers_writes_the_frames(pipe, tmp_path, kind):
    drawn = draw(pipe, output_type=kind)[0]
    path = export_to_video(drawn, str(tmp_path / "clip.mp4"), fps=4, quality=10)
    read = imageio.v3.imread(path, plugin="FFMPEG")
    assert read.shape == (4, 16, 16, 3)
    assert imageio.v3.immeta(path, plugin="FFMPEG")["fps"] == 4
    expected = np.stack([np.asarray(frame) / (255 if kind == "pil" else 1) for frame in drawn])
    # Video files keep brightness at every pixel, and colour at every fourth.
    luma = np.array([0.299, 0.587, 0.114])
    assert np.abs(read / 255 @ luma - expected @ luma).mean() < 0.03  # from frame to frame it is 0.2


def test_frames_are_what_the_video_writer_of_diffusers_takes(pipe):
    images, arrays = draw(pipe, output_type="pil")[0], draw(pipe, output_type="np")[0]
    assert isinstance(images, list)
    assert [image.size for image in images] == [(16, 16)] * 4
    assert isinstance(arrays[0], np.ndarray)
    assert arrays[0].shape == (16, 16, 3)
    np.testing.assert_allclose(np.asarray(images[2]) / 255, arrays[2], atol=0.5 / 255 + 1e-6)


BAD_INPUTS = {
    "frames": ({"num_frames": 3}, "No level of this model has clips of 3 frames: it has 1 frames of 8 pixels, 4"),
    "size": ({"height": 12}, "has clips of 12 pixels"),
    "both": ({"num_frames": 1, "height": 16}, "clips of 1 frames and 16 pixels"),
    "width": ({"height": 16, "width": 3}, "multiples of"),
    "noise of pictures": ({"latents": torch.zeros(1, 3, 8, 8)}, "expected noise of clips"),
    "noise of too few frames": (
        {"latents": [torch.zeros(1, 3, 1, 8, 8)] * 2, "num_frames": 4, "height": 8},
        "expected 2",
    ),
    "no prompt": ({"prompt": None}, "Neither `prompt` nor"),
    "count": ({"num_videos_per_prompt": 0}, "`num_videos_per_prompt` has to be"),
}


@pytest.mark.parametrize("case", BAD_INPUTS)
def test_bad_input_is_a_value_error(pipe, case):
    changes, message = BAD_INPUTS[case]
    with pytest.raises(ValueError, match=message):
        pipe(**{"prompt": "a cat", "num_inference_steps": 1, **changes})
