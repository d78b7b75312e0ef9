# SPDX-License-Identifier: Apache-2.0
"""Images that nobody vouches for become square pixels, or a reason why they cannot."""

import tracemalloc

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image, PngImagePlugin

from diffusers_mdm.training.data import images as image_decoding
from diffusers_mdm.training.data.batch import to_unit_range
from diffusers_mdm.training.data.images import (
    Crop,
    UnusableSampleError,
    open_image,
    square_pixels,
)
from tests.training.image_files import encoded, png, png_bomb


def noise_image(width: int = 16, height: int = 16, channels: int = 3, seed: int = 0) -> Image.Image:
    values = np.random.default_rng(seed).integers(0, 256, (height, width, channels), dtype=np.uint8)
    return Image.fromarray(values.squeeze())


def test_images_are_read_as_viewers_show_them():
    hidden = Image.new("RGB", (8, 8), "red").quantize(2)
    stored = open_image(encoded(hidden, transparency=hidden.getpixel((0, 0))))
    assert stored.mode == "RGB"
    assert (square_pixels(stored, 4) == 255).all()
    pixels = square_pixels(Image.new("LA", (8, 8)), 4)
    assert pixels.dtype == torch.uint8
    assert (pixels == 255).all()


def test_wide_images_are_cropped_in_the_centre():
    image = Image.new("RGB", (16, 8), "red")
    image.paste("blue", (4, 0, 12, 8))
    assert (square_pixels(image, 8)[2] == 255).all()
    assert (square_pixels(image, 4)[0] == 0).all()


@pytest.mark.parametrize("size", [(16, 8), (8, 16)])
def test_crops_reach_both_ends_of_the_longer_side(size):
    image = noise_image(*size)
    values = torch.from_numpy(np.array(image)).permute(2, 0, 1)
    assert torch.equal(square_pixels(image, 8, crop=Crop(0, 0)), values[:, :8, :8])
    assert torch.equal(square_pixels(image, 8, crop=Crop(1, 1)), values[:, -8:, -8:])


def test_resizing_is_what_the_pyramid_does():
    image = noise_image(32, 32)
    small = to_unit_range(square_pixels(image, 8))
    large = torch.from_numpy(np.array(image)).permute(2, 0, 1)
    pooled = F.avg_pool2d(to_unit_range(large)[None], 4)[0]
    # Rows and columns are each rounded to 8 bits.
    assert (small - pooled).abs().max() <= 2 / 255


@pytest.mark.parametrize("mode", ["lanczos", "bicubic", "bilinear", "nearest"])
@pytest.mark.parametrize("side", [8, 32])
def test_other_interpolations_are_those_of_pillow(mode, side):
    image = noise_image()
    expected = image.resize((side, side), getattr(Image.Resampling, mode.upper()))
    assert torch.equal(square_pixels(image, side, mode), torch.from_numpy(np.array(expected)).permute(2, 0, 1))


def test_unknown_interpolation_is_refused():
    with pytest.raises(ValueError, match="'cubic'; choose one of area, lanczos"):
        square_pixels(noise_image(), 8, "cubic")


def test_pixels_span_the_unit_range():
    assert to_unit_range(torch.tensor([0, 255], dtype=torch.uint8)).tolist() == [-1, 1]


def test_cmyk_jpeg_keeps_its_colours():
    image = Image.new("RGB", (16, 16), (200, 40, 90))
    stored = open_image(encoded(image.convert("CMYK"), "JPEG", quality=95))
    difference = square_pixels(stored, 4).float() - torch.tensor([200.0, 40.0, 90.0])[:, None, None]
    assert difference.abs().max() <= 3


def test_palette_and_grey_images_keep_their_colours():
    red = Image.new("RGB", (8, 8), (255, 0, 0))
    for image in (red.quantize(4), red.convert("P", palette=Image.Palette.ADAPTIVE)):
        assert square_pixels(open_image(encoded(image)), 2)[:, 0, 0].tolist() == [255, 0, 0]
    assert (square_pixels(open_image(encoded(Image.new("L", (8, 8), 77))), 2) == 77).all()
    assert (square_pixels(open_image(encoded(Image.new("1", (8, 8), 1))), 2) == 255).all()


def test_floating_point_images_have_no_known_range():
    with pytest.raises(UnusableSampleError, match="floating point"):
        square_pixels(open_image(encoded(Image.new("F", (8, 8), 0.5), "TIFF")), 4)


@pytest.mark.parametrize("form", ["JPEG", "PNG", "WEBP"])
def test_images_are_turned_upright(form):
    image = Image.new("RGB", (16, 8), "red")
    image.paste("blue", (8, 0, 16, 8))
    exif = Image.Exif()
    exif[0x0112] = 6  # stored lying on its left side
    upright = open_image(encoded(image, form, exif=exif))
    assert upright.size == (8, 16)
    top, bottom = square_pixels(upright, 8, crop=Crop(0, 0)), square_pixels(upright, 8, crop=Crop(1, 1))
    assert top[0].float().mean() > 200 > 50 > top[2].float().mean()
    assert bottom[2].float().mean() > 200 > 50 > bottom[0].float().mean()


@pytest.mark.parametrize("source", [b"", b"hello", b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\nshowpage"])
def test_what_is_no_image_is_refused(source):
    with pytest.raises(UnusableSampleError, match="cannot be decoded"):
        open_image(source)


@pytest.mark.parametrize("form", ["JPEG", "PNG", "WEBP", "GIF", "TIFF", "BMP"])
def test_images_that_were_cut_short_are_refused(form):
    whole = encoded(noise_image(64, 64), form)
    open_image(whole)
    with pytest.raises(UnusableSampleError, match="cannot be decoded"):
        open_image(whole[: len(whole) * 2 // 3])


@pytest.mark.parametrize("form", ["JPEG", "PNG", "WEBP", "GIF", "TIFF", "BMP", "JPEG2000"])
def test_damage_gives_an_image_or_a_reason(form):
    whole = bytearray(encoded(noise_image(32, 32), form))
    random = np.random.default_rng(0)
    for _ in range(60):
        damaged = bytearray(whole)
        for place in random.integers(0, len(whole), 4):
            damaged[place] = random.integers(256)
        try:
            pixels = square_pixels(open_image(bytes(damaged)), 8)
        except UnusableSampleError:
            continue
        assert pixels.shape == (3, 8, 8)


@pytest.mark.parametrize("side", [10_000, 20_000])
def test_decompression_bombs_are_refused(side):
    bomb = png_bomb(side)
    assert len(bomb) < 4_000
    with pytest.raises(UnusableSampleError, match="decompression bomb"):
        open_image(bomb)


def test_an_image_of_sixteen_bits_is_never_unpacked_to_many_times_its_pixels():
    content = png_bomb(2000, depth=16)
    tracemalloc.start()
    open_image(content)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    # Numpy's part; Pillow's is 2 bytes a pixel of the file and 4 of the result.
    assert peak < 2000**2 * 6


def test_notes_in_an_image_that_are_damaged_or_too_long_do_not_cost_it():
    notes = PngImagePlugin.PngInfo()
    notes.add_text("note", "x" * (PngImagePlugin.MAX_TEXT_CHUNK + 1), zip=True)
    exif = Image.Exif()
    exif[0x0112] = 3
    expected = square_pixels(noise_image(), 16)
    assert torch.equal(square_pixels(open_image(encoded(noise_image(), pnginfo=notes)), 16), expected)
    turned = encoded(noise_image(), pnginfo=notes, exif=exif)
    assert torch.equal(square_pixels(open_image(turned), 16), expected.rot90(2, (1, 2)))

    notes = PngImagePlugin.PngInfo()
    notes.add_text("note", "plain")
    content = encoded(noise_image(), pnginfo=notes, icc_profile=b"no profile", exif=exif)
    for name, image in (
        (b"tEXt", expected.rot90(2, (1, 2))),
        (b"iCCP", expected.rot90(2, (1, 2))),
        (b"eXIf", expected),
    ):
        damaged = bytearray(content)
        damaged[content.index(name) + 6] ^= 255
        assert torch.equal(square_pixels(open_image(bytes(damaged)), 16), image)


def test_what_makes_the_pixels_has_to_be_sound():
    content = bytearray(encoded(noise_image()))
    content[content.index(b"IDAT") + 6] ^= 255
    with pytest.raises(UnusableSampleError, match="cannot be decoded"):
        open_image(bytes(content))


def test_files_are_read_from_disk(tmp_path, monkeypatch):
    path = tmp_path / "red.png"
    path.write_bytes(png("red"))
    assert torch.equal(square_pixels(open_image(path), 4), square_pixels(open_image(path.read_bytes()), 4))
    with pytest.raises(UnusableSampleError, match="cannot be found"):
        open_image(tmp_path / "missing.png")
    monkeypatch.setattr(image_decoding, "MAX_FILE_BYTES", 10)
    with pytest.raises(UnusableSampleError, match="larger than"):
        open_image(path)


def test_damaged_exif_data_does_no_harm():
    exif = Image.Exif()
    exif[0x0112], exif[0x010F] = 3, "maker"
    whole = encoded(noise_image(), "JPEG", exif=exif)
    start, random = whole.index(b"Exif"), np.random.default_rng(0)
    expected = square_pixels(open_image(encoded(noise_image(), "JPEG")), 16)
    for _ in range(100):
        damaged = bytearray(whole)
        for place in random.integers(start, start + 50, 3):
            damaged[place] = random.integers(256)
        try:
            pixels = square_pixels(open_image(bytes(damaged)), 16)
        except UnusableSampleError:
            continue
        turned = [expected.rot90(turns, (1, 2)) for turns in range(4)]
        assert any(torch.equal(pixels, each) or torch.equal(pixels, each.flip(2)) for each in turned)
