# SPDX-License-Identifier: Apache-2.0
"""From the bytes of a picture that nobody vouches for to square pixels, or to the reason why that is impossible."""

import contextlib
import functools
import io
import struct
import warnings
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Literal, NamedTuple, get_args

import numpy as np
import torch
from PIL import Image, ImageOps

Interpolation = Literal["area", "lanczos", "bicubic", "bilinear", "nearest"]

MAX_FILE_BYTES = 2**28  # a larger file is no picture to train on
# Formats that Pillow decodes by itself: EPS, for one, would be handed to another program.
FORMATS = ("PNG", "JPEG", "MPO", "WEBP", "AVIF", "GIF", "BMP", "TIFF", "PPM", "JPEG2000", "TGA", "ICO")
# What Pillow's decoders raise at broken data, beside its own UnidentifiedImageError (an OSError).
_DECODER_ERRORS = (
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
    struct.error,
    zlib.error,
)
_RESAMPLING = {
    "lanczos": Image.Resampling.LANCZOS,
    "bicubic": Image.Resampling.BICUBIC,
    "bilinear": Image.Resampling.BILINEAR,
    "nearest": Image.Resampling.NEAREST,
}


class UnusableSampleError(ValueError):
    """A picture or clip that cannot be trained on; the message says why."""


class Crop(NamedTuple):
    """Where the square lies in the room that its longer side leaves: 0 at the left or top, 1 at the other end."""

    x: float = 0.5
    y: float = 0.5


CENTER = Crop()


def open_image(source: bytes | str | Path) -> Image.Image:
    """Read a picture from its bytes or file and turn it upright (EXIF); the whole of it is decoded.

    Raises:
        UnusableSampleError: if it is no picture, broken, cut short, or has more pixels than Pillow's own limit,
            `PIL.Image.MAX_IMAGE_PIXELS` (a small file can unpack to any size).
    """
    with reasons_of_decoders():
        if not isinstance(source, bytes):
            if Path(source).stat().st_size > MAX_FILE_BYTES:
                raise UnusableSampleError(f"the file is larger than {MAX_FILE_BYTES >> 20} MiB")
            source = Path(source).read_bytes()
        image = Image.open(io.BytesIO(source), formats=known_formats(FORMATS))
        image.load()
        ImageOps.exif_transpose(image, in_place=True)
        return image


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
    except _DECODER_ERRORS as error:
        raise UnusableSampleError(f"it cannot be decoded ({type(error).__name__}: {error})") from error


@functools.cache
def known_formats(formats: tuple[str, ...]) -> tuple[str, ...]:
    """Those of the formats that this Pillow reads."""
    Image.init()
    return tuple(name for name in formats if name in Image.OPEN)


def to_rgb(image: Image.Image) -> Image.Image:
    """Any picture as RGB with 8 bits: transparency on white, 16 bits rounded, palettes and CMYK looked up.

    Raises:
        UnusableSampleError: if its pixels have no known range or colours (floating point).
    """
    if image.mode == "RGB" and "transparency" not in image.info:
        return image
    if image.mode == "I" or image.mode.startswith("I;16"):
        deep = np.asarray(image).astype(np.float64).clip(0, 65535)
        return Image.fromarray(np.rint(deep / 257).astype(np.uint8)).convert("RGB")
    if image.mode == "F":
        raise UnusableSampleError("its pixels are floating point numbers of unknown range")
    try:
        if image.mode in ("RGBA", "LA", "PA", "P", "RGBa", "La") or "transparency" in image.info:
            image = image.convert("RGBA")
            image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
        return image.convert("RGB")
    except _DECODER_ERRORS as error:
        raise UnusableSampleError(f"its {image.mode} pixels cannot be read as RGB ({error})") from error


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
    image = to_rgb(image)
    short = min(image.size)
    left, top = (
        int(room * share) if share < 1 else room
        for room, share in zip((image.width - short, image.height - short), crop, strict=True)
    )
    box = (left, top, left + short, top + short)
    if short == side:
        image = image.crop(box)
    else:
        image = image.resize((side, side), _filter(interpolation, shrinks=short > side), box=box)
    return torch.from_numpy(np.array(image)).permute(2, 0, 1).contiguous()


def _filter(interpolation: Interpolation, shrinks: bool) -> Image.Resampling:
    if interpolation == "area":
        return Image.Resampling.BOX if shrinks else Image.Resampling.BICUBIC
    if interpolation not in _RESAMPLING:
        raise ValueError(
            f"Unknown interpolation {interpolation!r}; choose one of {', '.join(get_args(Interpolation))}."
        )
    return _RESAMPLING[interpolation]


def to_unit_range(pixels: torch.Tensor) -> torch.Tensor:
    """uint8 pixels 0..255 -> float32 in [-1, 1], the range the pipeline's pictures have."""
    return pixels.float() / 127.5 - 1.0
