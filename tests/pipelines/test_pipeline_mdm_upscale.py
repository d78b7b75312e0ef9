# SPDX-License-Identifier: Apache-2.0
"""Upscaling: the given level is held at every step, and comes back from the result."""

import numpy as np
import PIL.Image
import pytest
import torch
import torch.nn.functional as F
from diffusers.utils import logging as diffusers_logging

from diffusers_mdm import MDMUpscalePipeline
from diffusers_mdm.pyramid import pyramid_noise
from tests.pipelines.tiny_pipeline import make_pipeline, seed
from tests.pipelines.tiny_tasks import eight_bit_images, task

GIVEN = eight_bit_images(8)[:1]
# Three levels, of 8, 16 and 32 pixels.
THREE_LEVELS = {
    "block_out_channels": ((8, 16), (8, 8), (8, 8)),
    "layers_per_block": ((1, 1),) * 3,
    "attention_layers_per_block": ((0, 1), (0, 0), (0, 0)),
    "has_mid_block": (True, False, False),
    "has_attention_ffn": (True, False, False),
    "norm_num_groups": (4,) * 3,
    "normalize_input": (False, True, True),
    "dropout": (0.0,) * 3,
    "micro_conditioning_keys": (("scale",),) * 3,
    "micro_conditioning_defaults": ((8.0,), (16.0,), (32.0,)),
}


@pytest.fixture(scope="module")
def pipe() -> MDMUpscalePipeline:
    return task("upscale").make()


@pytest.fixture(scope="module")
def three() -> MDMUpscalePipeline:
    pipe = MDMUpscalePipeline.from_pipe(make_pipeline(**THREE_LEVELS))
    pipe.set_progress_bar_config(disable=True)
    return pipe


def draw(pipe, image=GIVEN, **changes):
    settings = {"num_inference_steps": 3, "guidance_scale": 3.0, "generator": seed(0), "output_type": "pt"}
    return pipe("a red apple", image, **{**settings, **changes})


def pooled(images: torch.Tensor) -> torch.Tensor:
    """8-bit numbers of images in [0, 1], averaged down to 8 pixels, exactly."""
    return F.avg_pool2d((images.double() * 255).round(), images.shape[-1] // 8)


@pytest.mark.parametrize("settings", [{}, {"eta": 1.0}, {"num_resampling_steps": 2}, {"guidance_rescale": 0.7}])
def test_averages_of_every_prediction_are_the_given_ones(pipe, settings):
    given = torch.rand(1, 3, 8, 8, generator=seed(4))
    seen = []

    def keep(pipeline, step, timestep, tensors):
        seen.append(tensors["pred_original_sample"][1])
        return {}

    asked = {"callback_on_step_end": keep, "callback_on_step_end_tensor_inputs": ["pred_original_sample"]}
    images = draw(pipe, given, **asked, **settings).images
    assert len(seen) == pipe.num_timesteps
    for preview in seen:
        torch.testing.assert_close(F.avg_pool2d(preview, 2), 2 * given - 1, atol=2e-5, rtol=0)
    torch.testing.assert_close(F.avg_pool2d(images, 2), given, atol=1e-5, rtol=0)


def test_averages_with_a_solver_of_second_order():
    pipe = task("upscale").make()
    pipe.scheduler = type(pipe.scheduler).from_config(pipe.scheduler.config, algorithm="dpmsolver++")
    given = torch.rand(1, 3, 8, 8, generator=seed(4))
    images = draw(pipe, given, num_inference_steps=5).images
    torch.testing.assert_close(F.avg_pool2d(images, 2), given, atol=1e-5, rtol=0)


def test_averages_of_pil_images_are_within_half_a_step(pipe):
    given = PIL.Image.fromarray(GIVEN[0].permute(1, 2, 0).numpy())
    large = draw(pipe, given, output_type="pil").images[0]
    error = F.avg_pool2d(torch.from_numpy(np.array(large)).permute(2, 0, 1)[None].double(), 2) - GIVEN
    assert 0 < error.abs().max() <= 0.5 + 1e-3


@pytest.mark.parametrize("eta", [0.0, 1.0])
def test_exact_averages_of_eight_bit_images(pipe, eta):
    images = draw(pipe, exact_consistency=True, eta=eta).images
    assert torch.equal(pooled(images), GIVEN.double())
    assert not torch.equal(pooled(draw(pipe).images), GIVEN.double())


def test_exact_averages_of_pil_images(pipe):
    given = PIL.Image.fromarray(GIVEN[0].permute(1, 2, 0).numpy())
    large = draw(pipe, given, exact_consistency=True, output_type="pil").images[0]
    assert large.size == (16, 16)
    assert large.reduce(2).tobytes() == given.tobytes()


def test_exact_averages_of_floats(pipe):
    given = torch.rand(1, 3, 8, 8, generator=seed(4))
    images = draw(pipe, given, exact_consistency=True).images
    torch.testing.assert_close(F.avg_pool2d(images, 2), given, atol=1e-6, rtol=0)


def test_exact_averages_at_every_level(three):
    pyramid = draw(three, exact_consistency=True, output_pyramid=True).pyramid
    assert [level.shape[-1] for level in pyramid] == [8, 16, 32]
    for level in pyramid:
        assert torch.equal(pooled(level), GIVEN.double())


def test_given_levels_come_out_as_they_were(three):
    given = eight_bit_images(16)[:1]
    pyramid = draw(three, given, output_pyramid=True).pyramid
    assert torch.equal(pyramid[1], given / 255)
    torch.testing.assert_close(pyramid[0], F.avg_pool2d(given / 255, 2))


def test_the_given_level_is_its_noised_truth_at_every_step(pipe):
    noise = pyramid_noise([(1, 3, 8, 8), (1, 3, 16, 16)], seed(3))
    samples = []

    def keep(pipeline, step, timestep, tensors):
        samples.append(tensors["latents"])
        return {}

    draw(pipe, latents=noise, callback_on_step_end=keep)
    clean = GIVEN / 127.5 - 1
    for sample, timestep in zip(samples, pipe.scheduler.timesteps[1:], strict=False):
        # The ratio of level 0 is 1, whatever stands around it.
        torch.testing.assert_close(sample[0], pipe.scheduler.add_noise(clean, noise[0], timestep.view(1)))
    torch.testing.assert_close(samples[-1][0], clean, atol=1e-6, rtol=0)


def test_the_given_image_matters(pipe):
    assert not torch.equal(draw(pipe).images, draw(pipe, 255 - GIVEN).images)


def test_resampling_calls_the_model_more_often(pipe):
    calls = []
    handle = pipe.unet.register_forward_pre_hook(lambda module, args: calls.append(1))
    plain = draw(pipe).images
    assert len(calls) == 3
    resampled = draw(pipe, num_resampling_steps=3).images
    handle.remove()
    assert len(calls) == 3 + 7
    assert pipe.num_timesteps == 7
    assert not torch.equal(plain, resampled)


def test_target_size(three):
    assert draw(three).images.shape[-2:] == (32, 32)
    assert draw(three, height=16).images.shape[-2:] == (16, 16)
    assert draw(three, width=16).images.shape[-2:] == (16, 16)
    assert draw(three, GIVEN[..., :4]).images.shape[-2:] == (32, 16)


def test_own_images_are_shrunk_to_a_level_inside(pipe, three, caplog):
    diffusers_logging.enable_propagation()
    photo = torch.linspace(0, 1, 640).expand(3, 480, 640)
    drawn = draw(pipe, photo, exact_consistency=True).images
    assert drawn.shape == (1, 3, 12, 16)
    torch.testing.assert_close(F.avg_pool2d(drawn, 2), F.avg_pool2d(photo[None], 80), atol=1e-5, rtol=0)
    assert "640 pixels); it is reduced to 6 x 8" in caplog.text
    caplog.clear()
    assert draw(pipe, torch.zeros(3, 8, 5)).images.shape == (1, 3, 16, 8)
    images = draw(three, torch.zeros(3, 20, 20), output_pyramid=True, num_inference_steps=1).pyramid
    assert [level.shape[-1] for level in images] == [8, 16, 32]
    assert (images[1] == 0).all()
    assert draw(three, torch.zeros(3, 20, 20), height=16, num_inference_steps=1).images.shape == (1, 3, 16, 16)
    assert not caplog.text


def test_a_model_of_one_level_has_nothing_to_start_from():
    single = {name: value[:1] for name, value in THREE_LEVELS.items()}
    with pytest.raises(ValueError, match=r"no level inside images of 8 pixels .* can upscale to nothing"):
        draw(MDMUpscalePipeline.from_pipe(make_pipeline(**single)))


BAD_INPUTS = {
    "no picture": ({"image": None}, "`image` is of type NoneType"),
    "no level inside": ({"height": 8}, "no level inside images of 8 pixels .* can upscale to 16"),
    "target": ({"height": 12}, "8 x 8 pixels cannot be upscaled to 12 x None: expected .* 16 x 16"),
    "another shape": ({"height": 16, "width": 8}, "cannot be upscaled to 16 x 8"),
    "rows": ({"image": torch.zeros(2, 3, 8, 8), "prompt": ["a"] * 3}, "3 in `prompt`, 2 in `image`"),
    "resampling": ({"num_resampling_steps": 0}, "`num_resampling_steps` has to be"),
    "jump": ({"jump_length": 1.5}, "`jump_length` has to be"),
    "no prompt": ({"prompt": None}, "Neither `prompt` nor"),
}


@pytest.mark.parametrize("case", BAD_INPUTS)
def test_bad_input_is_a_value_error(pipe, case):
    changes, message = BAD_INPUTS[case]
    with pytest.raises(ValueError, match=message):
        pipe(**{"prompt": "a cat", "image": GIVEN, "num_inference_steps": 1, **changes})
