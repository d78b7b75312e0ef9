# SPDX-License-Identifier: Apache-2.0
import pytest
import torch
from PIL import Image

from diffusers_mdm.training.data.samples import Sample, SampleDecoder, random_crop, sample_decoder
from diffusers_mdm.training.data.skip_budget import UnusableSampleError
from diffusers_mdm.training.recipe.data import DataRecipe
from tests.training.image_files import encoded, png


def gradient_sample(width: int = 64, height: int = 8) -> Sample:
    image = Image.linear_gradient("L").rotate(90).resize((width, height))
    return Sample(encoded(image.convert("RGB")), "a gradient")


def test_images_become_rows():
    decoder = SampleDecoder(side=4, micro_conditioning={"scale": 64.0, "beauty": 0.5})
    row = decoder.decode(Sample(png("blue", (12, 9)), "blue", {"beauty": 0.75}, label=3), position=0, seed=0)
    assert row.pixels[:, 0, 0].tolist() == [0, 0, 255]
    assert row.micro_conditioning == {"scale": 9.0, "beauty": 0.75}
    assert row.label == 3


def test_small_images_are_refused():
    with pytest.raises(UnusableSampleError, match="3 x 5 pixels, but `min_image_side` is 4"):
        SampleDecoder(side=4, min_image_side=4).decode(Sample(png(size=(3, 5)), ""), 0, 0)
    assert SampleDecoder(side=4, min_image_side=3).decode(Sample(png(size=(3, 5)), ""), 0, 0).pixels.shape == (3, 4, 4)


def test_numbers_that_are_none_make_a_sample_unusable():
    decoder = SampleDecoder(side=4, micro_conditioning={"beauty": 0.5})
    with pytest.raises(UnusableSampleError, match="'beauty' must be a number"):
        decoder.decode(Sample(png(), "", {"beauty": "great"}), 0, 0)


def test_random_crops_depend_on_seed_and_position_alone():
    decoder, sample = SampleDecoder(side=8, random_crop=True), gradient_sample()
    first = decoder.decode(sample, position=3, seed=1).pixels
    assert torch.equal(decoder.decode(sample, position=3, seed=1).pixels, first)
    brightness = {decoder.decode(sample, position, 1).pixels.float().mean().item() for position in range(20)}
    assert len(brightness) > 15
    assert max(brightness) - min(brightness) > 100
    assert not torch.equal(decoder.decode(sample, position=3, seed=2).pixels, first)


def test_random_crops_are_spread_evenly():
    crops = torch.tensor([random_crop(0, position) for position in range(2000)])
    assert (crops.mean(0) - 0.5).abs().max() < 0.03
    assert (crops.std(0) - 12**-0.5).abs().max() < 0.02
    assert torch.corrcoef(crops.T)[0, 1].abs() < 0.07


def test_the_recipe_says_how_images_are_decoded():
    recipe = DataRecipe(
        path="images",
        center_crop=False,
        image_interpolation_mode="lanczos",
        min_image_side=5,
        micro_conditioning_offsets={"scale": 2.0},
    )
    decoder = sample_decoder(recipe, 32, {"scale": 64.0})
    assert decoder == SampleDecoder(32, "lanczos", True, 5, {"scale": 64.0}, {"scale": 2.0})
    assert decoder.decode(gradient_sample(), 0, 0).micro_conditioning == {"scale": 10.0}
    with pytest.raises(ValueError, match="are: none"):
        sample_decoder(recipe, 32, {})
