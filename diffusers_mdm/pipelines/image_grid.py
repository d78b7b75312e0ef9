# SPDX-License-Identifier: Apache-2.0
"""Labelled grids of images: one column per prompt, one row per level of the pyramid."""

from __future__ import annotations

import math
from collections.abc import Sequence

from PIL import Image, ImageDraw, ImageFont

MIN_CELL = 128  # pixels; smaller images are enlarged to at least this side
GAP = 8  # pixels between cells
FONT_SIZE = 14  # pixels
INK = (32, 32, 32)


def make_grid(pyramid: Sequence[Sequence[Image.Image]], prompts: Sequence[str]) -> Image.Image:
    """Lay out one column per prompt and one row per level, the smallest level on top, all enlarged to the same size.

    Args:
        pyramid: for each level, innermost first, one image per prompt.
        prompts: the labels of the columns.
    """
    font = ImageFont.load_default(FONT_SIZE)
    largest = pyramid[-1][0]
    cell = max(largest.width, largest.height)
    cell *= math.ceil(MIN_CELL / cell)
    labels = [wrap_label(prompt, font, cell) for prompt in prompts]
    header = (FONT_SIZE + 4) * max(label.count("\n") + 1 for label in labels) + 2 * GAP
    margin = max(math.ceil(font.getlength(size_name(level[0]))) for level in pyramid) + 2 * GAP

    size = (margin + len(prompts) * (cell + GAP), header + len(pyramid) * (cell + GAP))
    grid = Image.new("RGB", size, "white")
    ink = ImageDraw.Draw(grid)
    for column, label in enumerate(labels):
        ink.multiline_text((margin + column * (cell + GAP), GAP), label, INK, font)
    for row, level in enumerate(pyramid):
        top = header + row * (cell + GAP)
        ink.text((GAP, top + cell // 2), size_name(level[0]), INK, font, anchor="lm")
        for column, image in enumerate(level):
            # Nearest, to show the pixels of the level.
            scale = cell / max(image.size)
            shown = image.resize([round(side * scale) for side in image.size], Image.Resampling.NEAREST)
            grid.paste(shown, (margin + column * (cell + GAP), top))
    return grid


def wrap_label(text: str, font: ImageFont.ImageFont | ImageFont.FreeTypeFont, width: int) -> str:
    """Wrap a text into lines of at most `width` pixels; a longer word gets its own line."""
    lines: list[str] = []
    for word in text.split():
        if lines and font.getlength(f"{lines[-1]} {word}") <= width:
            lines[-1] += f" {word}"
        else:
            lines.append(word)
    return "\n".join(lines)


def size_name(image: Image.Image) -> str:
    """Return the size of an image as text: the side of a square, otherwise width x height."""
    width, height = image.size
    return f"{width} px" if width == height else f"{width} x {height} px"
