# SPDX-License-Identifier: Apache-2.0
"""Images of every mode, depth and kind of transparency are seen as a viewer shows them."""

import io
import struct
import zlib

import numpy as np
import pytest
from PIL import Image

from diffusers_mdm.rgb_images import area_filter, is_deep, to_rgb

WHITE, GREEN = (255, 255, 255), (0, 255, 0)
GREY, COLOUR, PALETTE, GREY_ALPHA, COLOUR_ALPHA = 0, 2, 3, 4, 6
SAMPLES = {GREY: 1, COLOUR: 3, PALETTE: 1, GREY_ALPHA: 2, COLOUR_ALPHA: 4}
SIDE = 8


def png_chunk(name: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))


def png_file(kind: int, depth: int, left: list[int], right: list[int], extra: bytes = b"") -> bytes:
    """A PNG file of 8 x 8 pixels, its left half of one colour and its right half of another."""
    bits = "".join(
        format(sample, f"0{depth}b") for color in (left, right) for _ in range(SIDE // 2) for sample in color
    )
    row = b"\0" + int(bits, 2).to_bytes(len(bits) // 8, "big")
    header = struct.pack(">IIBBBBB", SIDE, SIDE, depth, kind, 0, 0, 0)
    return b"".join(
        (
            b"\x89PNG\r\n\x1a\n",
            png_chunk(b"IHDR", header),
            extra,
            png_chunk(b"IDAT", zlib.compress(row * SIDE)),
            png_chunk(b"IEND", b""),
        )
    )


def halves(image: Image.Image) -> tuple[tuple[int, ...], tuple[int, ...]]:
    assert image.mode == "RGB"
    return image.getpixel((1, 4)), image.getpixel((SIDE - 2, 4))


def read(content: bytes) -> Image.Image:
    return Image.open(io.BytesIO(content))


@pytest.mark.parametrize("depth", [1, 2, 4, 8, 16])
@pytest.mark.parametrize("key", ["lowest", "highest"])
def test_a_transparent_grey_of_any_depth_becomes_white(depth, key):
    top = 2**depth - 1
    hidden, seen = (0, top) if key == "lowest" else (top, 0)
    content = png_file(GREY, depth, [hidden], [seen], png_chunk(b"tRNS", struct.pack(">H", hidden)))
    assert halves(to_rgb(read(content))) == (WHITE, (255 * seen // top,) * 3)
    assert halves(to_rgb(read(content), "lime"))[0] == GREEN


@pytest.mark.parametrize("depth", [8, 16])
def test_a_transparent_colour_of_any_depth_becomes_white(depth):
    unit = 2**depth // 256 + (depth == 16)
    hidden, seen = [10 * unit, 20 * unit, 30 * unit], [10 * unit, 20 * unit, 31 * unit]
    content = png_file(COLOUR, depth, hidden, seen, png_chunk(b"tRNS", struct.pack(">HHH", *hidden)))
    assert halves(to_rgb(read(content))) == (WHITE, (10, 20, 31))


@pytest.mark.parametrize("depth", [1, 2, 4, 8])
@pytest.mark.parametrize("alpha", [b"\0", b"\0\xff", b"\0\x80", b"\0\xff\0\xff"])
def test_a_transparent_entry_of_a_palette_becomes_white(depth, alpha):
    colors = png_chunk(b"PLTE", bytes([0, 0, 0, 200, 100, 50]))
    content = png_file(PALETTE, depth, [0], [1], colors + png_chunk(b"tRNS", alpha[: 2**depth]))
    hidden, seen = halves(to_rgb(read(content)))
    assert hidden == WHITE
    share = 0.5 if alpha[1:2] == b"\x80" else 1.0
    assert np.allclose(seen, [255 + share * (part - 255) for part in (200, 100, 50)], atol=1)


@pytest.mark.parametrize("depth", [8, 16])
@pytest.mark.parametrize("kind", [GREY_ALPHA, COLOUR_ALPHA])
def test_an_alpha_channel_of_any_depth_becomes_white(depth, kind):
    top, colors = 2**depth - 1, SAMPLES[kind] - 1
    content = png_file(kind, depth, [0] * colors + [0], [0] * colors + [top])
    assert halves(to_rgb(read(content))) == (WHITE, (0, 0, 0))


@pytest.mark.parametrize("mode", ["RGBA", "LA", "PA", "La", "RGBa"])
def test_every_mode_with_transparency_is_put_on_the_background(mode):
    image = Image.new("LA", (SIDE, SIDE)).convert("La") if mode == "La" else Image.new(mode, (SIDE, SIDE))
    assert halves(to_rgb(image)) == (WHITE, WHITE)
    assert halves(to_rgb(image, "lime")) == (GREEN, GREEN)


def test_a_palette_of_colours_with_alpha_is_put_on_the_background():
    image = Image.new("RGBA", (SIDE, SIDE), (10, 20, 30, 0)).quantize(4)
    assert image.mode == "P"
    assert halves(to_rgb(image)) == (WHITE, WHITE)


@pytest.mark.parametrize("mode", ["RGB", "RGBX", "L", "P", "1", "CMYK", "YCbCr", "HSV", "LAB", "I", "I;16", "I;16B"])
def test_every_mode_without_transparency_keeps_its_colours(mode):
    grey = np.full((SIDE, SIDE), 255, np.uint8)
    if mode.startswith("I"):
        deep = Image.fromarray(np.full((SIDE, SIDE), 65535, "<u2"))
        image = Image.frombytes("I;16B", deep.size, b"\xff" * 2 * SIDE**2) if mode == "I;16B" else deep.convert(mode)
    elif mode == "LAB":
        image = Image.merge("LAB", [Image.fromarray(grey), *[Image.new("L", (SIDE, SIDE), 128)] * 2])
    elif mode == "RGBX":
        image = Image.frombytes("RGBX", (SIDE, SIDE), b"\xff" * 4 * SIDE**2)
    else:
        image = Image.fromarray(grey).convert("RGB").convert(mode)
    assert image.mode == mode
    # LAB's two colour channels have no exact middle.
    assert np.abs(np.asarray(to_rgb(image), int) - 255).max() <= (4 if mode == "LAB" else 0)


def test_images_that_need_nothing_are_handed_back():
    image = Image.new("RGB", (SIDE, SIDE), "red")
    assert to_rgb(image) is image


def test_half_transparency_is_mixed_with_the_background():
    assert to_rgb(Image.new("RGBA", (1, 1), (0, 0, 0, 127))).getpixel((0, 0)) == (128, 128, 128)


def test_sixteen_bits_are_rounded_to_eight():
    values = np.arange(65536, dtype=np.uint16).reshape(256, 256)
    expected = np.rint(values / 257).astype(np.uint8)
    assert np.array_equal(np.asarray(to_rgb(Image.fromarray(values)))[..., 1], expected)


def test_twelve_bits_of_a_tiff_file_span_the_whole_range():
    file = io.BytesIO()
    Image.fromarray(np.full((SIDE, SIDE), 4095, np.uint16)).save(file, "TIFF", tiffinfo={258: 12})
    stored = read(file.getvalue())
    stored.load()
    if stored.tag_v2[258] not in (12, (12,)):
        # Pillow writes its own depth, so the file is made to say 12 bits where it says 16.
        stored.tag_v2[258] = 12
    assert halves(to_rgb(stored)) == (WHITE, WHITE)


@pytest.mark.parametrize(
    ("image", "message"),
    [
        (Image.new("F", (8, 8), 0.5), "floating point"),
        (Image.new("I", (8, 8), 70_000), "from 70000 to 70000; expected 0 to 65535"),
        (Image.new("I", (8, 8), -1), "from -1"),
    ],
)
def test_numbers_of_unknown_range_are_refused(image, message):
    assert is_deep(image)
    with pytest.raises(ValueError, match=message):
        to_rgb(image)


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("form", ["PNG", "TIFF"])
def test_images_are_turned_upright_once(orientation, form):
    values = np.random.default_rng(0).integers(0, 256, (4, 6, 3), dtype=np.uint8)
    exif = Image.Exif()
    exif[0x0112] = orientation
    file = io.BytesIO()
    Image.fromarray(values).save(file, form, exif=exif)
    expected = values
    if orientation > 4:
        expected = expected.transpose(1, 0, 2)
    if orientation in (2, 3, 6, 7):
        expected = expected[:, ::-1]
    if orientation in (3, 4, 7, 8):
        expected = expected[::-1]
    upright = to_rgb(read(file.getvalue()))
    assert np.array_equal(np.asarray(upright), expected)
    assert np.array_equal(np.asarray(to_rgb(upright)), expected)


@pytest.mark.parametrize("key", [(1, 2), "red", (1, 2, 3, 4), 3.5])
@pytest.mark.parametrize("mode", ["RGB", "L", "1", "P", "I;16", "CMYK"])
def test_transparency_that_means_nothing_is_left_out(mode, key):
    image = Image.new(mode, (SIDE, SIDE))
    image.info["transparency"] = key
    assert set(halves(to_rgb(image))) <= {(0, 0, 0), WHITE}
    image.info["exif"] = b"Exif\0\0nonsense"
    assert to_rgb(image).size == (SIDE, SIDE)


def test_large_images_are_converted_in_bands():
    values = np.random.default_rng(0).integers(0, 65536, (2100, 1000), dtype=np.uint16)
    assert np.array_equal(np.asarray(to_rgb(Image.fromarray(values)))[..., 2], np.rint(values / 257).astype(np.uint8))


def test_shrinking_averages_areas():
    assert area_filter((9, 9), (8, 8)) == Image.Resampling.BOX
    assert area_filter((8, 8), (8, 9)) == Image.Resampling.BICUBIC
