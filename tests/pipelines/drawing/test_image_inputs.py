# SPDX-License-Identifier: Apache-2.0
"""Images and masks of every kind become the same tensor; what cannot be one is refused."""

import PIL.Image
import pytest
import torch

from diffusers_mdm.pipelines.drawing.image_inputs import fitting_size, has_shape_of, read_images, read_masks
from tests.pipelines.tiny_pipeline import seed
from tests.pipelines.tiny_tasks import eight_bit_images, masks

TENSORS = eight_bit_images(8)
ARRAYS = TENSORS.permute(0, 2, 3, 1).numpy()
IMAGES = [PIL.Image.fromarray(array) for array in ARRAYS]
FRACTIONS = TENSORS / 255


@pytest.mark.parametrize(
    ("given", "eight_bit"),
    [
        (IMAGES, True),
        (list(ARRAYS), True),
        (ARRAYS, True),
        (list(TENSORS), True),
        (TENSORS, True),
        ([TENSORS[:1], TENSORS[1:]], True),
        (FRACTIONS, False),
        (list(FRACTIONS), False),
        (FRACTIONS.permute(0, 2, 3, 1).numpy(), False),
    ],
)
def test_every_kind_is_the_same_tensor(given, eight_bit):
    images = read_images(given, 3)
    assert images.pixels.dtype == torch.float32
    assert torch.equal(images.pixels, FRACTIONS)
    assert images.is_eight_bit == eight_bit


def test_one_image_is_a_batch_of_one():
    for given in (IMAGES[0], ARRAYS[0], TENSORS[0], FRACTIONS[0]):
        assert torch.equal(read_images(given, 3).pixels, FRACTIONS[:1])


def test_grey_images_for_models_of_either_kind():
    grey = IMAGES[0].convert("L")
    assert read_images(grey, 1).pixels.shape == (1, 1, 8, 8)
    colour = read_images(grey, 3).pixels
    assert torch.equal(colour[:, 0], colour[:, 2])


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (None, "`image` is of type NoneType; expected PIL images"),
        ("cat.png", "`image` is of type str"),
        ([], "`image` is an empty list"),
        ([IMAGES[0], TENSORS[0]], "all of one kind"),
        (TENSORS[0, 0], r"shape \(8, 8\)"),
        ([TENSORS[0], TENSORS[1, :, :4]], r"sizes \[\(4, 8\), \(8, 8\)\]"),
        (TENSORS[:, :1], r"\[1\] channels, but the model has 3"),
        (TENSORS.permute(0, 2, 3, 1), r"\[8\] channels"),
        (FRACTIONS * 2 - 1, r"from -.* `image / 2 \+ 0.5`"),
        (FRACTIONS * float("nan"), "from nan"),
        (TENSORS.int(), "type torch.int32; expected floats"),
        (PIL.Image.new("F", (8, 8)), "mode F that cannot be read: .*unknown range. Pass its values as an array"),
        (ARRAYS.astype(object), "an array of type object"),
        (FRACTIONS.to("meta"), "a tensor on the device meta .* expected one with plain numbers"),
        (FRACTIONS.to_sparse(), "of layout torch.sparse_coo"),
        (ARRAYS[:, :0], r"shape \(3, 0, 8, 3\).*none of them empty"),
    ],
)
def test_what_is_no_image_is_refused(given, message):
    with pytest.raises(ValueError, match=message):
        read_images(given, 3)


def test_sixteen_bits_are_read_in_arrays_tensors_and_images():
    deep = (ARRAYS.astype("uint16")) * 257
    for given in (deep, torch.from_numpy(deep).permute(0, 3, 1, 2), deep.astype(">u2")):
        images = read_images(given, 3)
        torch.testing.assert_close(images.pixels, FRACTIONS)
        assert not images.is_eight_bit
    grey = PIL.Image.fromarray(deep[0, ..., 0])
    assert torch.equal(read_images(grey, 1).pixels, FRACTIONS[:1, :1])


def test_transparency_of_every_kind_is_put_on_white():
    alpha = torch.zeros(3, 1, 8, 8, dtype=torch.uint8)
    alpha[..., 4:] = 255
    expected = FRACTIONS.clone()
    expected[..., :4] = 1
    tensors = torch.cat([TENSORS, alpha], dim=1)
    arrays = tensors.permute(0, 2, 3, 1).numpy()
    for given in (tensors, arrays, [PIL.Image.fromarray(array) for array in arrays], tensors / 255):
        torch.testing.assert_close(read_images(given, 3).pixels, expected)
    palette = PIL.Image.new("P", (8, 8))
    palette.info["transparency"] = 0
    assert (read_images(palette, 3).pixels == 1).all()


def test_images_are_turned_upright():
    lying = IMAGES[0].crop((0, 0, 8, 4))
    lying.getexif()[0x0112] = 6
    assert torch.equal(read_images(lying, 3).pixels, FRACTIONS[:1, :, :4].rot90(-1, (2, 3)))


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ((64, 64), (64, 64)),
        ((16, 16), (16, 16)),
        ((16, 8), (16, 8)),
        ((480, 640), (48, 64)),
        ((640, 480), (64, 48)),
        ((32, 32), (64, 64)),
        ((1, 1000), (16, 64)),
        ((64, 50), (64, 48)),
        ((16, 5), (16, 4)),
        ((63, 64), (64, 64)),
    ],
)
def test_images_of_other_sizes_take_the_largest_level(given, expected):
    assert fitting_size(*given, sides=(16, 64), multiples=(4, 16)) == expected


def test_images_are_resized_as_the_levels_of_a_pyramid_are():
    large = eight_bit_images(32)
    for given in (large, list(large.permute(0, 2, 3, 1).numpy()), large / 255):
        images = read_images(given, 3, fit=lambda height, width: (8, 8))
        torch.testing.assert_close(images.pixels, torch.nn.functional.avg_pool2d(large / 255, 4), atol=3e-3, rtol=0)
        assert images.given_sizes[0] == (32, 32)
        if images.is_eight_bit:
            torch.testing.assert_close(images.pixels * 255, (images.pixels * 255).round(), atol=1e-4, rtol=0)
    sizes = [large[0], large[1, :, :16, :16]]
    assert read_images(sizes, 3, fit=lambda height, width: (8, 8)).pixels.shape == (2, 3, 8, 8)
    enlarged = read_images(TENSORS[:, :, :2, :2], 3, fit=lambda height, width: (16, 16)).pixels
    assert enlarged.shape == (3, 3, 16, 16)
    assert 0 <= enlarged.min() < enlarged.max() <= 1


def test_latents_are_told_by_their_channels():
    latents = torch.randn(2, 4, 8, 8, generator=seed(0)) * 3
    read = read_images(latents, 3, num_latent_channels=4)
    assert read.pixels is None
    assert torch.equal(read.tensor, latents)
    assert torch.equal(read_images(list(latents), 3, num_latent_channels=4).latents, latents)
    assert read_images(FRACTIONS, 3, num_latent_channels=4).latents is None
    # An array of four channels is an image with an alpha channel.
    rgba = torch.ones(8, 8, 4).numpy()
    assert read_images(rgba, 3, num_latent_channels=4).pixels.shape == (1, 3, 8, 8)
    with pytest.raises(ValueError, match="from -"):
        read_images(torch.cat([FRACTIONS - 0.9] * 2, dim=1)[:, :4], 3)


def test_masks_of_every_kind():
    mask = masks(8)
    expected = mask.bool()
    pil = [PIL.Image.fromarray((entry[0].numpy() * 255).astype("uint8")) for entry in mask]
    for given in (
        mask,
        expected,
        list(mask[:, 0]),
        list(mask),
        pil,
        mask.permute(0, 2, 3, 1).numpy(),
        list(expected[:, 0].numpy()),
        mask * 0.6,
    ):
        assert torch.equal(read_masks(given), expected)
    assert not read_masks(mask * 0.4).any()
    with pytest.raises(ValueError, match="`mask_image` is of type NoneType"):
        read_masks(None)
    with pytest.raises(ValueError, match=r"`mask_image` has \[3\] channels"):
        read_masks(TENSORS)


NUMBERS = masks(8)[0, 0].numpy()


@pytest.mark.parametrize("kind", ["uint8", "int64", "uint16", "int32", "float32", "bool", ">u2"])
def test_a_mask_of_zeros_and_ones_is_read_as_one(kind):
    expected = masks(8)[:1].bool()
    given = NUMBERS.astype(kind)
    assert torch.equal(read_masks(given), expected)
    assert torch.equal(read_masks(torch.from_numpy(given.astype(given.dtype.newbyteorder("=")))), expected)
    assert not read_masks(given * 0).any()


@pytest.mark.parametrize("white", [1, 255, 65535])
@pytest.mark.parametrize("mode", ["1", "L", "P", "RGB", "RGBA", "LA", "I", "I;16", "CMYK", "F"])
def test_pil_masks_of_every_mode(mode, white):
    if mode.startswith("I"):
        image = PIL.Image.fromarray((NUMBERS * white).astype("uint16")).convert(mode)
    elif mode == "F":
        image = PIL.Image.fromarray(NUMBERS)
    else:
        image = PIL.Image.fromarray((NUMBERS * min(white, 255)).astype("uint8")).convert(mode)
    assert image.mode == mode
    # Pillow makes "1" and CMYK of grey by a threshold and by inks, which leaves no trace of a 1.
    if white > 1 or mode not in ("1", "CMYK"):
        assert torch.equal(read_masks(image), masks(8)[:1].bool())


def test_what_is_transparent_in_a_mask_is_kept():
    strokes = PIL.Image.new("RGBA", (8, 8), (255, 255, 255, 0))
    strokes.paste((255, 255, 255, 255), (2, 2, 5, 5))
    expected = torch.zeros(1, 1, 8, 8, dtype=torch.bool)
    expected[..., 2:5, 2:5] = True
    assert torch.equal(read_masks(strokes), expected)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (NUMBERS.astype("uint8") * 21, "from 0 to 21, none of which is at least half of white .255.*`labels == 3`"),
        (NUMBERS.astype("int64") * 300, "half of white .65535."),
        (NUMBERS.astype("int64") * -1, "from -1 to 0; expected 0"),
        (NUMBERS.astype("int64") * 70_000, "from 0 to 70000; expected 0"),
        (NUMBERS.astype("complex64"), "values of type torch.complex64; expected floats"),
        (NUMBERS * 2, "from 0 to 2; expected 0 .black. to 1"),
        (PIL.Image.fromarray(NUMBERS.astype("uint8") * 7), "from 0 to 7, none"),
    ],
)
def test_masks_that_would_repaint_nothing_without_a_word_are_refused(given, message):
    with pytest.raises(ValueError, match=message):
        read_masks(given)


def test_a_smaller_mask_covers_all_that_is_to_be_repainted():
    mask = torch.zeros(1, 1, 32, 32)
    mask[..., 5, 9] = 1
    resized = read_masks(mask, fit=lambda height, width: (8, 8))
    assert resized.nonzero().tolist() == [[0, 0, 1, 2]]
    enlarged = read_masks(resized, fit=lambda height, width: (16, 16))
    assert torch.equal(enlarged, resized.repeat_interleave(2, 2).repeat_interleave(2, 3))


def test_shapes_are_compared_up_to_whole_pixels():
    assert has_shape_of(48, 64, [(480, 640)])
    assert has_shape_of(47, 64, [(479, 640)])
    assert not has_shape_of(64, 64, [(480, 640)])
    assert has_shape_of(64, 64, [(480, 640), (8, 8)])
