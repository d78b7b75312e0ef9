# SPDX-License-Identifier: Apache-2.0
"""Decoding untrusted image files to pixels of one size, or to the reason why that is impossible."""

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

from ...pyramid import Size
from ...rgb_images import DECODER_ERRORS, area_filter, to_rgb
from .local_files import read_file
from .skip_budget import UnusableSampleError

Interpolation = Literal["area", "lanczos", "bicubic", "bilinear", "nearest"]

MAX_FILE_BYTES = 2**28  # a larger file is not an image to train on
# Formats that Pillow decodes itself: EPS, for example, would be passed to another program.
FORMATS = ("PNG", "JPEG", "MPO", "WEBP", "AVIF", "GIF", "BMP", "TIFF", "PPM", "JPEG2000", "TGA", "ICO")
_PNG_HEAD = b"\x89PNG\r\n\x1a\n"
# The chunks of a PNG file that define its pixels; all others are metadata (texts, colour profiles, times).
_PNG_PIXEL_CHUNKS = (b"IHDR", b"PLTE", b"tRNS", b"IDAT", b"IEND", b"acTL", b"fcTL", b"fdAT")
_PNG_ORIENTATION = b"eXIf"
_RESAMPLING = {
    "lanczos": Image.Resampling.LANCZOS,
    "bicubic": Image.Resampling.BICUBIC,
    "bilinear": Image.Resampling.BILINEAR,
    "nearest": Image.Resampling.NEAREST,
}


class Crop(NamedTuple):
    """Position of a crop in an image: 0 at the left or top, 1 at the other end."""

    x: float = 0.5
    y: float = 0.5


CENTER = Crop()


def open_image(source: bytes | str | Path) -> Image.Image:
    """Decode an image completely, from its bytes or file, and convert it with `to_rgb`.

    Raises:
        UnusableSampleError: if it is not an image, is damaged or truncated, has more pixels than Pillow's own limit,
            `PIL.Image.MAX_IMAGE_PIXELS` (a small file can expand to any size), or pixel values of unknown range.
    """
    if not isinstance(source, bytes):
        source = read_file(Path(source), MAX_FILE_BYTES)
    try:
        return _decoded(source)
    except UnusableSampleError:
        # Viewers ignore metadata that is damaged or too long, but Pillow does not.
        pixels_only = _without_png_notes(source)
        if pixels_only is None:
            raise
        return _decoded(pixels_only)


def _decoded(content: bytes) -> Image.Image:
    with reasons_of_decoders():
        image = Image.open(io.BytesIO(content), formats=known_formats(FORMATS))
        return as_rgb(image)


def as_rgb(image: Image.Image) -> Image.Image:
    """Convert an image with `to_rgb`.

    Raises:
        UnusableSampleError: instead of the ValueError of `to_rgb`.
    """
    try:
        return to_rgb(image)
    except ValueError as error:
        raise UnusableSampleError(str(error)) from error


def _without_png_notes(content: bytes) -> bytes | None:
    """Return a PNG file reduced to the chunks that define its pixels; None for other files, or if there is nothing to
    remove.
    """
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
    """Convert Pillow's decoding errors inside the block to `UnusableSampleError`."""
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
    """Return the formats that the installed Pillow can read."""
    Image.init()
    return tuple(name for name in formats if name in Image.OPEN)


def square_pixels(
    image: Image.Image, side: int, interpolation: Interpolation = "area", crop: Crop = CENTER
) -> torch.Tensor:
    """Crop the largest square from an image and resize it: uint8 (3, side, side); see `cropped_pixels`."""
    return cropped_pixels(image, (side, side), interpolation, crop)


def cropped_pixels(
    image: Image.Image, size: Size, interpolation: Interpolation = "area", crop: Crop = CENTER
) -> torch.Tensor:
    """Crop the largest area with the aspect ratio of `size` from an image and resize it: uint8 (3, height, width).

    Area averaging is also what `build_pyramid` does between levels, so a stage on small images is trained on the same
    pixels as the inner levels of a later stage, up to rounding to 8 bits. An area that is too small is enlarged with
    bicubic interpolation.

    Args:
        image: of any mode and size.
        size: height and width, in pixels.
        interpolation: "area", or the name of a filter of Pillow.
        crop: position of the area, (0.5, 0.5) for the centre.
    """
    image = as_rgb(image)
    height, width = size
    # Whole pixels, so that an image of the right size is not resampled; at least one.
    wide = min(image.width, max(round(image.height * width / height), 1))
    high = min(image.height, max(round(image.width * height / width), 1))
    left, top = (
        int(room * share) if share < 1 else room
        for room, share in zip((image.width - wide, image.height - high), crop, strict=True)
    )
    box = (left, top, left + wide, top + high)
    if (high, wide) == size:
        image = image.crop(box)
    else:
        image = image.resize((width, height), _filter(interpolation, (high, wide), size), box=box)
    return torch.from_numpy(np.array(image)).permute(2, 0, 1).contiguous()


def _filter(interpolation: Interpolation, old: Size, new: Size) -> Image.Resampling:
    if interpolation == "area":
        return area_filter(old, new)
    if interpolation not in _RESAMPLING:
        raise ValueError(
            f"Unknown interpolation {interpolation!r}; choose one of {', '.join(get_args(Interpolation))}."
        )
    return _RESAMPLING[interpolation]
