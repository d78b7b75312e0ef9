# SPDX-License-Identifier: Apache-2.0
"""Images, latents and masks of a call take the size of a level, and say what is known at every level inside."""

import pytest
import torch

from diffusers_mdm.pipelines.drawing.given_images import (
    image_size,
    know_around,
    know_images,
    read_given_images,
    read_masks_of,
)
from diffusers_mdm.pipelines.drawing.image_inputs import Images
from diffusers_mdm.pipelines.drawing.request import Request
from diffusers_mdm.pipelines.drawing.setup import begin_drawing
from tests.pipelines.tiny_pipeline import seed
from tests.pipelines.tiny_tasks import task


@pytest.fixture(scope="module")
def pipe():
    return task("inpaint").make()


def read(pipe, image, mask=None, **options) -> Request:
    request = Request(prompt="a", image=image, mask_image=mask, guidance_scale=1.0)
    read_given_images(pipe, request, options.pop("sides", pipe.image_sides), **options)
    request.height, request.width = image_size(request.images, pipe.vae_scale_factor)
    if mask is not None:
        read_masks_of(request)
    return request


@pytest.mark.parametrize(
    ("size", "options", "expected"),
    [
        ((16, 16), {}, (16, 16)),
        ((8, 8), {}, (8, 8)),
        ((30, 40), {}, (12, 16)),
        ((30, 40), {"sides": (8,)}, (6, 8)),
        ((30, 40), {"resize_to": 8}, (6, 8)),
    ],
)
def test_images_take_the_size_of_a_level(pipe, size, options, expected):
    request = read(pipe, torch.rand(3, *size, generator=seed(0)), **options)
    assert (request.height, request.width) == request.images.pixels.shape[-2:] == expected
    assert request.images.given_sizes == (size,)


def test_masks_take_the_size_of_the_images_whichever_of_both_they_were_made_for(pipe):
    image = torch.rand(3, 30, 40, generator=seed(0))
    for size in ((30, 40), (12, 16), (60, 80)):
        assert read(pipe, image, torch.ones(size)).masks.shape == (1, 1, 12, 16)
    with pytest.raises(ValueError, match=r"`mask_image` is 40 x 30 pixels .* but `image` is 30 x 40"):
        read(pipe, image, torch.ones(40, 30))


def test_latents_stand_for_larger_images():
    assert image_size(Images(None, False, latents=torch.zeros(1, 4, 8, 6)), 2) == (16, 12)
    assert image_size(Images(torch.zeros(1, 3, 8, 6), False), 2) == (8, 6)


def test_each_level_knows_the_average_and_what_lies_around_the_mask(pipe):
    image, mask = torch.rand(1, 3, 16, 16, generator=seed(0)), torch.zeros(16, 16)
    mask[:2] = 1
    request = read(pipe, image, mask)
    request.num_images = 2
    noise = [torch.zeros(2, 3, side, side) for side in (8, 16)]
    with begin_drawing(pipe, request) as drawing:
        whole, around = know_images(drawing, noise), know_around(drawing, noise)
    assert [level.shape for level in whole.pixels] == [level.shape for level in noise]
    torch.testing.assert_close(whole.pixels[0][1], torch.nn.functional.avg_pool2d(image[0], 2))
    torch.testing.assert_close(whole.clean[1][:1], 2 * image - 1)
    assert whole.drawn == [None, None]
    assert [int(level[0].sum()) for level in around.drawn] == [8, 32]
