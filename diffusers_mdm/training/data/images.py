# SPDX-License-Identifier: Apache-2.0
"""From the bytes of a picture that nobody vouches for to square pixels, or to the reason why that is impossible."""

import contextlib
import functools
import io
import warnings
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Literal, NamedTuple, get_args

import numpy as np
import torch
from PIL import Image

from ...rgb_pictures import DECODER_ERRORS, area_filter, to_rgb
from .local_files import read_file
from .skip_budget import UnusableSampleError

Interpolation = Literal["area", "lanczos", "bicubic", "bilinear", "nearest"]

MAX_FILE_BYTES = 2**28  # a larger file is no picture to train on
# Formats that Pillow decodes by itself: EPS, for one, would be handed to another program.
FORMATS = ("PNG", "JPEG", "MPO", "WEBP", "AVIF", "GIF", "BMP", "TIFF", "PPM", "JPEG2000", "TGA", "ICO")
_PNG_HEAD = b"\x89PNG\r\n\x1a\n"
# The chunks of a PNG file that make its pixels; all others are notes (texts, colour profiles, times).
_PNG_PIXEL_CHUNKS = (b"IHDR", b"PLTE", b"tRNS", b"IDAT", b"IEND", b"acTL", b"fcTL", b"fdAT")
_PNG_ORIENTATION = b"eXIf"
_RESAMPLING = {
    "lanczos": Image.Resampling.LANCZOS,
    "bicubic": Image.Resampling.BICUBIC,
    "bilinear": Image.Resampling.BILINEAR,
    "nearest": Image.Resampling.NEAREST,
}


class Crop(NamedTuple):
    """Where the square lies in the room that its longer side leaves: 0 at the left or top, 1 at the other end."""

    x: float = 0.5
    y: float = 0.5


CENTER = Crop()


def open_image(source: bytes | str | Path) -> Image.Image:
    """Read a picture from its bytes or file, as `to_rgb` shows it; the whole of it is decoded.

    Raises:
        UnusableSampleError: if it is no picture, broken, cut short, has more pixels than Pillow's own limit,
            `PIL.Image.MAX_IMAGE_PIXELS` (a small file can unpack to any size), or numbers of unknown range.
    """
    if not isinstance(source, bytes):
        source = read_file(Path(source), MAX_FILE_BYTES)
    try:
        return _decoded(source)
    except UnusableSampleError:
        # Viewers go on where a note beside the pixels is damaged or too long, and Pillow does not.
        pixels_only = _without_png_notes(source)
        if pixels_only is None:
            raise
        return _decoded(pixels_only)


def _decoded(content: bytes) -> Image.Image:
    with reasons_of_decoders():
        image = Image.open(io.BytesIO(content), formats=known_formats(FORMATS))
        return as_rgb(image)


def as_rgb(image: Image.Image) -> Image.Image:
    """See `to_rgb`.

    Raises:
        UnusableSampleError: in place of its ValueError.
    """
    try:
        return to_rgb(image)
    except ValueError as error:
        raise UnusableSampleError(str(error)) from error


def _without_png_notes(content: bytes) -> bytes | None:
    """A PNG file with nothing but what makes its pixels; None for other files, and where nothing can be left out."""
    if not content.startswith(_PNG_HEAD):
        return None
    kept, place = [_PNG_HEAD], len(_PNG_HEAD)
    while place < len(content):
        end = place + 12 + int.from_bytes(content[place : place + 4], "big")
        chunk = content[place:end]
        is_sound = chunk[-4:] == zlib.crc32(chunk[4:-4]).to_bytes(4, "big")
        if chunk[4:8] in _PNG_PIXEL_CHUNKS or (chunk[4:8] == _PNG_ORIENTATION and is_sound):
            kept.append(chunk)
        place = end
    shorter = b"".join(kept)
    return shorter if len(shorter) < len(content) else None


@contextlib.contextmanager
def reasons_of_decoders() -> Iterator[None]:
    """Turn what Pillow raises at data that it cannot decode into `UnusableSampleError`."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            yield
    except UnusableSampleError:
        raise
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise UnusableSampleError(f"it is a decompression bomb ({error})") from error
    except DECODER_ERRORS as error:
        raise UnusableSampleError(f"it cannot be decoded ({type(error).__name__}: {error})") from error


@functools.cache
def known_formats(formats: tuple[str, ...]) -> tuple[str, ...]:
    """Those of the formats that this Pillow reads."""
    Image.init()
    return tuple(name for name in formats if name in Image.OPEN)


def square_pixels(
    image: Image.Image, side: int, interpolation: Interpolation = "area", crop: Crop = CENTER
) -> torch.Tensor:
    """Cut the largest square out of a picture and resize it: uint8 (3, side, side).

    Area averaging is what `build_pyramid` does between levels, so a stage of small pictures sees the same pixels as
    the inner levels of a later stage, up to rounding to 8 bits. A square that is too small for it is enlarged with
    bicubic curves.

    Args:
        image: of any mode and size.
        side: S, in pixels.
        interpolation: "area", or a filter of Pillow.
        crop: where the square is taken, (0.5, 0.5) for the centre.
    """
    image = as_rgb(image)
    short = min(image.size)
    left, top = (
        int(room * share) if share < 1 else room
        for room, share in zip((image.width - short, image.height - short), crop, strict=True)
    )
    box = (left, top, left + short, top + short)
    if short == side:
        image = image.crop(box)
    else:
        image = image.resize((side, side), _filter(interpolation, short, side), box=box)
    return torch.from_numpy(np.array(image)).permute(2, 0, 1).contiguous()


def _filter(interpolation: Interpolation, short: int, side: int) -> Image.Resampling:
    if interpolation == "area":
        return area_filter((short, short), (side, side))
    if interpolation not in _RESAMPLING:
        raise ValueError(
            f"Unknown interpolation {interpolation!r}; choose one of {', '.join(get_args(Interpolation))}."
        )
    return _RESAMPLING[interpolation]
