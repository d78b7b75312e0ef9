# SPDX-License-Identifier: Apache-2.0
"""Conversion of any Pillow image to what a viewer shows: upright 8-bit RGB on a plain background.

Modes, bit depths and transparency are handled here and nowhere else. An image can be transparent by an alpha channel,
a palette with alpha, or a single transparent colour (PNG's tRNS chunk, GIF's transparent index).
"""

from __future__ import annotations

import struct
import zlib
from typing import Any

import numpy as np
from PIL import Image

# What Pillow's decoders raise on damaged data, besides its own UnidentifiedImageError (an OSError).
DECODER_ERRORS = (
    OSError,
    SyntaxError,
    ValueError,
    TypeError,
    LookupError,
    ArithmeticError,
    EOFError,
    MemoryError,
    NotImplementedError,
    RuntimeError,
    AttributeError,
    struct.error,
    zlib.error,
)
_BITS_PER_SAMPLE, _ORIENTATION = 258, 274  # tags of TIFF and EXIF
_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_BAND_PIXELS = 2**20  # pixels converted at a time, so that no intermediate copy is as large as the image

# A transparent colour: one number (grey or palette index), or three.
Key = int | tuple[int, int, int]


def to_rgb(image: Image.Image, background: str = "white") -> Image.Image:
    """Convert an image of any mode to RGB, with transparent areas on a plain background.

    16-bit values are rounded to 8 bits. Damaged metadata is ignored.

    Args:
        image: of any mode and size. If it is a 2-bit or 4-bit grey PNG or a 16-bit colour PNG with a transparent
            colour, it should not have been loaded yet: Pillow then forgets the bit depth in which that colour is
            given.
        background: the colour behind transparent pixels, by Pillow's name.

    Returns:
        An image without metadata; the given image itself if there is nothing to do.

    Raises:
        ValueError: its pixels cannot be decoded, or have no known range (floating point, 32 bits).
    """
    key = _transparent_key(image)
    try:
        image.load()
    except DECODER_ERRORS as error:
        raise ValueError(f"it cannot be decoded ({type(error).__name__}: {error})") from error
    turn = _UPRIGHT.get(_orientation(image))
    if image.mode == "F":
        raise ValueError("its pixels are floating point numbers of unknown range")
    if image.mode != "RGB" or key is not None:
        image = _in_bands(image, key, background)
    if turn is None:
        return image
    image = image.transpose(turn)
    # Otherwise code that reads the metadata of the copy would rotate it once more.
    image.info = {}
    return image


def upright_size(image: Image.Image) -> tuple[int, int]:
    """Return height and width of an image as `to_rgb` turns it, without decoding its pixels."""
    turn = _UPRIGHT.get(_orientation(image))
    is_turned = turn in (
        Image.Transpose.ROTATE_90,
        Image.Transpose.ROTATE_270,
        Image.Transpose.TRANSPOSE,
        Image.Transpose.TRANSVERSE,
    )
    return (image.width, image.height) if is_turned else (image.height, image.width)


def is_deep(image: Image.Image) -> bool:
    """Return whether an image has a single channel of more than 8 bits."""
    return image.mode in ("I", "F") or image.mode.startswith("I;16")


def area_filter(old: tuple[int, int], new: tuple[int, int]) -> Image.Resampling:
    """Return the filter that resizes in the way pyramids are built: area averages to shrink, bicubic to enlarge.

    Args:
        old: two sides in pixels.
        new: two sides in pixels, in the same order as `old`.
    """
    return Image.Resampling.BOX if new[0] * new[1] < old[0] * old[1] else Image.Resampling.BICUBIC


def _in_bands(image: Image.Image, key: Key | None, background: str) -> Image.Image:
    canvas = Image.new("RGB", image.size)
    white, height = _white_of(image), max(1, _BAND_PIXELS // max(image.width, 1))
    for top in range(0, image.height, height):
        band = image.crop((0, top, image.width, min(top + height, image.height)))
        try:
            canvas.paste(_band_to_rgb(band, key, background, white), (0, top))
        except DECODER_ERRORS as error:
            raise ValueError(f"its {image.mode} pixels cannot be read as RGB ({error})") from error
    return canvas


def _band_to_rgb(band: Image.Image, key: Key | None, background: str, white: int) -> Image.Image:
    hidden = None if key is None else _has_color(band, key)
    band.info = {name: value for name, value in band.info.items() if name == "transparency" and band.mode == "P"}
    if is_deep(band):
        band = Image.fromarray(_eight_bits(np.asarray(band), white))
    if band.has_transparency_data:
        band = band.convert("LA") if band.mode == "La" else band
        band = _opaque_palette_or_rgba(band)
        band = Image.alpha_composite(Image.new("RGBA", band.size, background), band)
    band = band.convert("RGB")
    if hidden is not None:
        band.paste(background, (0, 0), Image.fromarray(hidden.astype(np.uint8) * 255))
    return band


def _opaque_palette_or_rgba(band: Image.Image) -> Image.Image:
    """Convert to RGBA, without palette transparency if that has no effect."""
    try:
        return band.convert("RGBA")
    except DECODER_ERRORS:
        if band.mode != "P":
            raise
        band.info = {}
        return band.convert("RGBA")


def _has_color(band: Image.Image, key: Key) -> np.ndarray:
    """Return a mask `(H, W)` of the pixels that have the transparent colour."""
    values = np.asarray(band)
    if values.dtype == bool:
        return values == bool(key)
    return values == key if isinstance(key, int) else (values == np.array(key)).all(axis=-1)


def _eight_bits(values: np.ndarray, white: int) -> np.ndarray:
    """Scale values from 0 to `white` to 0 to 255, rounded."""
    low, high = int(values.min()), int(values.max())
    if low < 0 or high > white:
        raise ValueError(f"they are from {low} to {high}; expected 0 to {white}")
    return ((values.astype(np.uint32) * 255 + white // 2) // white).astype(np.uint8)


def _white_of(image: Image.Image) -> int:
    """Return the value of white in an image of more than 8 bits; Pillow does not scale 12-bit TIFF files."""
    bits: Any = getattr(image, "tag_v2", {}).get(_BITS_PER_SAMPLE)
    return 4095 if bits in (12, (12,)) else 65535


def _transparent_key(image: Image.Image) -> Key | None:
    """Return the transparent colour on the scale of the loaded image, None if there is no single such colour.

    A PNG file gives it in the file's own bit depth, and Pillow does not convert it.
    """
    key, mode = image.info.get("transparency"), image.mode
    # Only an image that is not loaded yet has the file's pixel layout, "L;2" or "RGB;16B" for example.
    tiles: Any = getattr(image, "tile", None)
    layout = str(tiles[0][3]) if tiles else mode
    if mode == "RGB":
        if not (isinstance(key, (tuple, list)) and len(key) == 3):
            return None
        red, green, blue = (int(part) >> 8 if layout == "RGB;16B" else int(part) for part in key)
        return red, green, blue
    if not isinstance(key, int) or not (mode in ("1", "L", "I") or mode.startswith("I;16")):
        return None
    levels = {"L;2": 3, "L;4": 15}.get(layout)
    return key if levels is None else key * 255 // levels


def _orientation(image: Image.Image) -> int:
    """Return the EXIF orientation; 1 (upright) if the metadata cannot be read."""
    try:
        value = image.getexif().get(_ORIENTATION, 1)
    except DECODER_ERRORS:
        return 1
    return value if isinstance(value, int) else 1
