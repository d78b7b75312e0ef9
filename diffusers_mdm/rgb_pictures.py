# SPDX-License-Identifier: Apache-2.0
"""Any picture that Pillow opened, as a viewer shows it: upright, in RGB with 8 bits, on a plain background.

The one place that knows modes, bit depths, and the ways in which a picture says that it is transparent: an alpha
channel, a palette with one, or one colour (PNG's tRNS chunk, GIF's transparent index).
"""

from __future__ import annotations

import struct
import zlib
from typing import Any

import numpy as np
from PIL import Image

# What Pillow's decoders raise at broken data, beside its own UnidentifiedImageError (an OSError).
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
_BAND_PIXELS = 2**20  # converted at a time, so that no intermediate picture is as large as the whole

# A transparent colour: one number, or three.
Key = int | tuple[int, int, int]


def to_rgb(image: Image.Image, background: str = "white") -> Image.Image:
    """Show a picture of any mode as RGB, with what is transparent on a plain background.

    16-bit numbers are rounded to 8 bits. A picture whose metadata are broken is shown without them.

    Args:
        image: of any mode and size. A 2-bit or 4-bit grey PNG, or a 16-bit colour one, that has a transparent colour
            should not have been loaded yet: Pillow forgets the depth in which that colour is given.
        background: what is seen through transparent pixels, a colour by Pillow's name.

    Returns:
        A picture without metadata; the given one itself where there is nothing to do.

    Raises:
        ValueError: its pixels cannot be decoded, or are numbers of no known range (floating point, 32 bits).
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
    # The copy would otherwise be turned once more by whoever reads its metadata.
    image.info = {}
    return image


def is_deep(image: Image.Image) -> bool:
    """Whether a picture has one number a pixel, of more than 8 bits."""
    return image.mode in ("I", "F") or image.mode.startswith("I;16")


def area_filter(old: tuple[int, int], new: tuple[int, int]) -> Image.Resampling:
    """The filter that resizes as the levels of a pyramid are made: averages over areas, bicubic curves to enlarge.

    Args:
        old: two sides in pixels.
        new: two sides in pixels, in the same order.
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
    """As RGBA; transparency of a palette that means nothing is left out."""
    try:
        return band.convert("RGBA")
    except DECODER_ERRORS:
        if band.mode != "P":
            raise
        band.info = {}
        return band.convert("RGBA")


def _has_color(band: Image.Image, key: Key) -> np.ndarray:
    """Which pixels `(H, W)` have the transparent colour."""
    values = np.asarray(band)
    if values.dtype == bool:
        return values == bool(key)
    return values == key if isinstance(key, int) else (values == np.array(key)).all(axis=-1)


def _eight_bits(values: np.ndarray, white: int) -> np.ndarray:
    """Numbers from 0 to `white` as numbers from 0 to 255, rounded."""
    low, high = int(values.min()), int(values.max())
    if low < 0 or high > white:
        raise ValueError(f"they are from {low} to {high}; expected 0 to {white}")
    return ((values.astype(np.uint32) * 255 + white // 2) // white).astype(np.uint8)


def _white_of(image: Image.Image) -> int:
    """The number of white in a picture of more than 8 bits: Pillow leaves 12-bit TIFF files as they are."""
    bits: Any = getattr(image, "tag_v2", {}).get(_BITS_PER_SAMPLE)
    return 4095 if bits in (12, (12,)) else 65535


def _transparent_key(image: Image.Image) -> Key | None:
    """The transparent colour in the numbers of the loaded picture; None where no single colour says so.

    A PNG file gives it in the file's own bit depth, and Pillow hands it on as it stands.
    """
    key, mode = image.info.get("transparency"), image.mode
    # A picture that is not loaded yet knows the layout of the file's pixels, "L;2" or "RGB;16B" for example.
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
    """The EXIF orientation, 1 for upright and wherever the metadata cannot be read."""
    try:
        value = image.getexif().get(_ORIENTATION, 1)
    except DECODER_ERRORS:
        return 1
    return value if isinstance(value, int) else 1
