# SPDX-License-Identifier: Apache-2.0
"""Uploaded images: read with limits, turned upright, on a white background, with the painted part as a mask."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

from PIL import Image, ImageChops

from diffusers_mdm.rgb_images import DECODER_ERRORS, to_rgb

from .drawings import GivenImage
from .limits import Limits

MIN_SIDE = 4  # pixels


def read_upload(path: str | Path | None, limits: Limits) -> GivenImage:
    """Read an uploaded image file.

    Args:
        path: of the file; None if nothing was uploaded.
        limits: the largest file and image.

    Raises:
        ValueError: a sentence for the visitor.
    """
    if not path:
        raise ValueError("Upload an image first: drop a file on the field, or paste one.")
    return GivenImage(_read(Path(path), limits))


def read_edit(edited: dict[str, Any] | None, limits: Limits) -> GivenImage:
    """Read what the image editor holds: the image, and what was painted on layers over it.

    Args:
        edited: paths of the files "background" and "layers".
        limits: the largest file and image.

    Raises:
        ValueError: a sentence for the visitor.
    """
    given = read_upload((edited or {}).get("background"), limits)
    mask = None
    for path in (edited or {}).get("layers") or ():
        with Image.open(path) as layer:
            painted = layer.convert("RGBA").getchannel("A").point(lambda value: 255 if value else 0)
        if painted.size != given.image.size:
            painted = painted.resize(given.image.size, Image.Resampling.NEAREST)
        mask = painted if mask is None else ImageChops.lighter(mask, painted)
    return given if mask is None or mask.getbbox() is None else GivenImage(given.image, mask)


def _read(path: Path, limits: Limits) -> Image.Image:
    if path.stat().st_size > limits.upload_megabytes * 2**20:
        raise ValueError(f"The image file is larger than {limits.upload_megabytes} MB; upload a smaller one.")
    unreadable = "The file is not an image that can be read here; upload a PNG, JPEG or WebP file."
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            image = Image.open(path)
    except DECODER_ERRORS as error:
        raise ValueError(unreadable) from error
    with image:
        # Only the header has been read until here.
        if image.width * image.height > limits.upload_megapixels * 10**6:
            raise ValueError(
                f"The image has {image.width} x {image.height} pixels; this page takes up to "
                f"{limits.upload_megapixels} megapixels."
            )
        try:
            rgb = to_rgb(image)
        except DECODER_ERRORS as error:
            raise ValueError(unreadable) from error
    if min(rgb.size) < MIN_SIDE:
        raise ValueError(f"The image has {rgb.width} x {rgb.height} pixels; it needs {MIN_SIDE} or more on each side.")
    return rgb
