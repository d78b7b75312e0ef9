# SPDX-License-Identifier: Apache-2.0
"""Fields for images that leave reading the files to `uploads`, which has limits and explains what is wrong.

gradio's own fields decode a file before any of our code runs, and answer a damaged one with an error without words.
Their methods are replaced in the object: a derived class would make gradio write a file of types beside this one.
"""

from __future__ import annotations

import functools
import io
from collections.abc import Callable
from typing import Any

import gradio as gr
from PIL import Image


def image_field(**options: Any) -> gr.Image:
    """Return a field whose value is the path of the uploaded file, whatever it contains.

    Args:
        options: of `gradio.Image`.
    """
    field = gr.Image(type="filepath", **options)
    # gradio has checked that the file was uploaded here.
    field.preprocess = lambda payload: None if payload is None else payload.path
    return field


def paint_field(most_pixels: int, **options: Any) -> gr.ImageEditor:
    """Return an image editor that refuses images of too many pixels before they are decoded.

    Args:
        most_pixels: of the image and of what is painted on it.
        options: of `gradio.ImageEditor`.
    """
    field = gr.ImageEditor(type="filepath", **options)
    field.convert_and_format_image = functools.partial(_convert, field.convert_and_format_image, most_pixels)
    return field


def _convert(convert: Callable[..., Any], most_pixels: int, file: Any, *args: Any, **options: Any) -> Any:
    """Convert the background or a layer with gradio's own method, unless its header shows that it is too large.

    Args:
        convert: the method.
        most_pixels: of an image.
        file: an uploaded file, its content, or None.
        args: of the method.
        options: of the method.

    Raises:
        gr.Error: it is not an image, or too large; a sentence for the visitor.
    """
    if file is not None:
        source = io.BytesIO(file) if isinstance(file, (bytes, bytearray, memoryview)) else file.path
        try:
            with Image.open(source) as header:
                pixels = header.width * header.height
        except (OSError, Image.DecompressionBombError) as error:
            raise gr.Error("The file is not an image that can be read here.", print_exception=False) from error
        if pixels > most_pixels:
            raise gr.Error(
                f"The image has more than {most_pixels / 10**6:g} megapixels; use a smaller one.",
                print_exception=False,
            )
    return convert(file, *args, **options)
