# SPDX-License-Identifier: Apache-2.0
"""Image to image: strength 0 is the image itself, strength 1 nearly a drawing of its own."""

import numpy as np
import PIL.Image
import pytest
import torch
from diffusers import DDIMScheduler, EulerDiscreteScheduler

from diffusers_mdm import MDMImg2ImgPipeline
from tests.pipelines.tiny_pipeline import seed
from tests.pipelines.tiny_tasks import eight_bit_images, task

GIVEN = eight_bit_images(16)[:1]


@pytest.fixture
def pipe() -> MDMImg2ImgPipeline:
    return task("img2img").make()


def draw(pipe, image=GIVEN, **changes):
    settings = {"num_inference_steps": 4, "guidance_scale": 3.0, "generator": seed(0), "output_type": "pt"}
    return pipe("a red apple", image, **{**settings, **changes}).images


def test_strength_0_returns_the_image(pipe):
    assert torch.equal(draw(pipe, strength=0), GIVEN / 255)
    floats = torch.rand(2, 3, 16, 8, generator=seed(1))
    assert torch.equal(draw(pipe, floats, strength=0.0, generator=None), floats)
    image = PIL.Image.fromarray(GIVEN[0].permute(1, 2, 0).numpy())
    assert draw(pipe, image, strength=0, output_type="pil")[0].tobytes() == image.tobytes()
    np.testing.assert_array_equal(draw(pipe, strength=0, output_type="np")[0], np.asarray(image) / np.float32(255))


def test_strength_0_is_the_image_at_every_level(pipe):
    settings = {"strength": 0, "output_pyramid": True, "output_type": "pt"}
    pyramid = pipe("a cat", GIVEN, **settings).pyramid
    torch.testing.assert_close(pyramid[0], torch.nn.functional.avg_pool2d(GIVEN / 255, 2))
    assert torch.equal(pyramid[1], GIVEN / 255)


@pytest.mark.parametrize(("strength", "steps"), [(0.01, 1), (0.3, 1), (0.5, 2), (0.8, 3), (1, 4)])
def test_strength_is_a_share_of_the_steps(pipe, strength, steps):
    seen = []

    def note(pipeline, step, timestep, tensors):
        seen.append(int(timestep))
        return tensors

    draw(pipe, strength=strength, callback_on_step_end=note)
    assert seen == pipe.scheduler.timesteps.tolist()[-steps:]
    assert pipe.num_timesteps == steps


def test_more_strength_is_further_from_the_image(pipe):
    distances = [(draw(pipe, strength=strength) - GIVEN / 255).abs().mean() for strength in (0, 0.25, 1)]
    assert distances[0] == 0
    assert distances[0] < distances[1] < distances[2]


def test_it_starts_from_the_noised_image_at_every_level(pipe):
    seen = []
    pipe.unet.register_forward_pre_hook(lambda module, args: seen.append(args[0]))
    noise = [torch.randn(1, 3, side, side, generator=seed(2)) for side in (8, 16)]
    draw(pipe, latents=noise, strength=0.5, guidance_scale=1.0)
    clean = [torch.nn.functional.avg_pool2d(GIVEN / 127.5 - 1, 2), GIVEN / 127.5 - 1]
    expected = pipe.scheduler.add_noise(clean, noise, pipe.scheduler.timesteps[2:3])
    for level, wanted in zip(seen[0], expected, strict=True):
        torch.testing.assert_close(level, wanted, atol=1e-5, rtol=0)


@pytest.mark.parametrize("scheduler", [DDIMScheduler, EulerDiscreteScheduler])
def test_schedulers_of_diffusers_draw_over_the_innermost_level(pipe, scheduler):
    pipe.scheduler = scheduler.from_config(pipe.scheduler.config)
    given = eight_bit_images(8)[:1]
    images = draw(pipe, given, strength=0.5)
    assert images.shape == (1, 3, 8, 8)
    assert 0 < (images - given / 255).abs().mean() < 0.5
    with pytest.raises(ValueError, match="supports a single level"):
        draw(pipe)


def test_own_images_are_flattened_and_resized(pipe):
    settings = {"strength": 0, "output_type": "pt"}
    photo = PIL.Image.new("RGBA", (640, 480), (255, 0, 0, 0))
    for given in (photo, photo.quantize(), photo.convert("LA")):
        images = pipe("a cat", given, **settings).images
        assert images.shape == (1, 3, 12, 16)
        assert (images == 1).all()
    assert pipe("a cat", photo, num_inference_steps=2, output_type="pil").images[0].size == (16, 12)
    red = PIL.Image.new("RGB", (12, 12), "red")
    assert torch.equal(pipe("a cat", red, **settings).images[0, :, 0, 0], torch.tensor([1.0, 0, 0]))


BAD_INPUTS = {
    "no picture": ({"image": None}, "`image` is of type NoneType"),
    "strength above": ({"strength": 1.5}, "`strength` has to be a number from 0 .* but is 1.5"),
    "strength below": ({"strength": -0.1}, "`strength` has to be a number from 0 .* but is -0.1"),
    "rows": ({"image": torch.zeros(2, 3, 16, 16), "prompt": ["a"] * 3}, "3 in `prompt`, 2 in `image`"),
    "noise": ({"latents": torch.zeros(1, 3, 16, 16)}, r"1 level\(s\) .* expected 2 level"),
}


@pytest.mark.parametrize("case", BAD_INPUTS)
def test_bad_input_is_a_value_error(pipe, case):
    changes, message = BAD_INPUTS[case]
    with pytest.raises(ValueError, match=message):
        pipe(**{"prompt": "a cat", "image": GIVEN, "num_inference_steps": 1, **changes})
