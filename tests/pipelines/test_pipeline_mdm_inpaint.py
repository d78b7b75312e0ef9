# SPDX-License-Identifier: Apache-2.0
"""Inpainting: what the mask leaves out stays to the last bit, and is seen by what is drawn."""

import numpy as np
import PIL.Image
import pytest
import torch
from diffusers import DDIMScheduler

from diffusers_mdm import MDMInpaintPipeline, MDMPipeline
from diffusers_mdm.pipelines.drawing.known_pixels import pool_mask
from diffusers_mdm.pyramid import pyramid_noise
from tests.pipelines.tiny_pipeline import seed
from tests.pipelines.tiny_tasks import eight_bit_images, masks, task

GIVEN = eight_bit_images(16)[:1]
MASK = masks(16)[:1]
OUTSIDE = ~MASK.bool().expand(1, 3, 16, 16)


@pytest.fixture
def pipe() -> MDMInpaintPipeline:
    return task("inpaint").make()


def draw(pipe, image=GIVEN, mask=MASK, **changes):
    settings = {"num_inference_steps": 3, "guidance_scale": 3.0, "generator": seed(0), "output_type": "pt"}
    return pipe("a red apple", image, mask, **{**settings, **changes}).images


@pytest.mark.parametrize("changes", [{}, {"num_resampling_steps": 2}, {"strength": 0.5}, {"eta": 1.0}])
def test_unmasked_pixels_stay(pipe, changes):
    images = draw(pipe, **changes)
    assert torch.equal(images[OUTSIDE], (GIVEN / 255)[OUTSIDE])
    assert (images - GIVEN / 255).abs()[~OUTSIDE].mean() > 0.01


def test_unmasked_pixels_stay_in_images_and_latents(pipe):
    image = PIL.Image.fromarray(GIVEN[0].permute(1, 2, 0).numpy())
    mask = PIL.Image.fromarray((MASK[0, 0].numpy() * 255).astype("uint8"))
    drawn = np.asarray(draw(pipe, image, mask, output_type="pil")[0])
    outside = OUTSIDE[0].permute(1, 2, 0).numpy()
    np.testing.assert_array_equal(drawn[outside], np.asarray(image)[outside])
    latents = draw(pipe, output_type="latent")
    assert torch.equal(latents[OUTSIDE], (2 * (GIVEN / 255) - 1)[OUTSIDE])


def test_half_precision_leaves_them_too(pipe):
    images = draw(pipe.to(dtype=torch.bfloat16))
    assert torch.equal(images[OUTSIDE], (GIVEN / 255)[OUTSIDE])


def test_an_empty_mask_returns_the_image(pipe):
    assert torch.equal(draw(pipe, mask=torch.zeros(1, 1, 16, 16)), GIVEN / 255)
    assert torch.equal(draw(pipe, strength=0), GIVEN / 255)


def test_a_full_mask_is_text_to_image(pipe):
    text = MDMPipeline.from_pipe(pipe)
    text.set_progress_bar_config(disable=True)
    settings = {"num_inference_steps": 3, "guidance_scale": 3.0, "generator": seed(0), "output_type": "pt"}
    expected = text("a red apple", **settings).images
    assert torch.equal(draw(pipe, mask=torch.ones(1, 1, 16, 16)), expected)


def test_what_is_around_the_mask_is_seen(pipe):
    inside = ~OUTSIDE
    assert not torch.equal(draw(pipe)[inside], draw(pipe, 255 - GIVEN)[inside])


def test_nothing_inside_the_mask_is_seen(pipe):
    other = torch.where(OUTSIDE, GIVEN, 255 - GIVEN)
    assert torch.equal(draw(pipe), draw(pipe, other))


def test_known_pixels_are_their_noised_truth_at_every_level_and_step(pipe):
    noise = pyramid_noise([(1, 3, 8, 8), (1, 3, 16, 16)], seed(3))
    samples = []

    def keep(pipeline, step, timestep, tensors):
        samples.append(tensors["latents"])
        return {}

    draw(pipe, latents=noise, callback_on_step_end=keep)
    clean = [torch.nn.functional.avg_pool2d(GIVEN / 255, 2) * 2 - 1, GIVEN / 255 * 2 - 1]
    drawn = pool_mask(MASK.bool(), clean)
    truths = [pipe.scheduler.add_noise(clean, noise, t.view(1)) for t in pipe.scheduler.timesteps[1:]] + [clean]
    for sample, truth in zip(samples, truths, strict=True):
        for level, known, mask in zip(sample, truth, drawn, strict=True):
            outside = ~mask.expand(level.shape)
            torch.testing.assert_close(level[outside], known[outside])


def test_masks_grow_inwards():
    mask = torch.zeros(1, 1, 16, 16, dtype=torch.bool)
    mask[..., 5, 5] = True
    inner, outer = pool_mask(mask, [torch.zeros(1, 3, 8, 8), torch.zeros(1, 3, 16, 16)])
    assert torch.equal(outer, mask)
    assert inner.nonzero().tolist() == [[0, 0, 2, 2]]


def test_a_scheduler_of_diffusers_draws_inside_the_innermost_level(pipe):
    pipe.scheduler = DDIMScheduler.from_config(pipe.scheduler.config)
    given, mask = eight_bit_images(8)[:1], masks(8)[:1]
    images = draw(pipe, given, mask)
    outside = ~mask.bool().expand(1, 3, 8, 8)
    assert torch.equal(images[outside], (given / 255)[outside])
    with pytest.raises(ValueError, match="DDIMScheduler cannot go back to more noise"):
        draw(pipe, given, mask, num_resampling_steps=2)


def test_masks_are_resized_with_the_images(pipe):
    photo = torch.linspace(0, 1, 640).expand(3, 480, 640)
    mask = torch.zeros(480, 640, dtype=torch.uint8)
    mask[:240] = 1
    settings = {"num_inference_steps": 2, "output_type": "pt", "generator": seed(0)}
    drawn = pipe("a cat", photo, mask, **settings).images
    assert drawn.shape == (1, 3, 12, 16)
    given = torch.nn.functional.avg_pool2d(photo[None], 40)
    torch.testing.assert_close(drawn[:, :, 6:], given[:, :, 6:])
    assert (drawn[:, :, :6] - given[:, :, :6]).abs().mean() > 0.01
    # A mask that was made for the small image will do as well.
    small = pipe("a cat", photo, mask[::40, ::40], **{**settings, "generator": seed(0)}).images
    torch.testing.assert_close(small, drawn)


BAD_INPUTS = {
    "no mask": ({"mask_image": None}, "`mask_image` is of type NoneType"),
    "mask of another shape": ({"mask_image": torch.zeros(8, 16)}, "8 x 16 pixels .* but `image` is 16 x 16"),
    "mask of labels": ({"mask_image": torch.full((16, 16), 3)}, "`mask_image` has whole numbers from 3 to 3, none"),
    "masks of another batch": (
        {"mask_image": torch.zeros(3, 1, 16, 16), "image": torch.zeros(2, 3, 16, 16)},
        "2 in `image`, 3 in `mask_image`",
    ),
    "strength": ({"strength": 2}, "`strength` has to be .* but is 2"),
    "resampling": ({"num_resampling_steps": 0}, "`num_resampling_steps` has to be"),
}


@pytest.mark.parametrize("case", BAD_INPUTS)
def test_bad_input_is_a_value_error(pipe, case):
    changes, message = BAD_INPUTS[case]
    with pytest.raises(ValueError, match=message):
        pipe(**{"prompt": "a cat", "image": GIVEN, "mask_image": MASK, "num_inference_steps": 1, **changes})
