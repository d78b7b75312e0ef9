# SPDX-License-Identifier: Apache-2.0
"""Samples for a model card: every level of one seed, further seeds, and the real image, with one row per caption."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from PIL import Image, ImageDraw, ImageFont

from ..pipelines.image_grid import FONT_SIZE, GAP, INK, MIN_CELL, size_name, wrap_label
from .generate import NUMBER, Generation, draw, takes_number

LABEL_WIDTH = 150  # pixels of the column with the captions
REAL = "real image"


def draw_seeds(
    pipeline: Any,
    captions: Sequence[str],
    seeds: Sequence[int],
    batch_size: int = 16,
    settings: Mapping[str, Any] | None = None,
) -> list[list[list[Image.Image]]]:
    """Generate an image for every caption from every seed.

    The image of a seed starts from the same noise for every caption: `generator=torch.Generator().manual_seed(seed)`.

    Args:
        pipeline: one of ours, or any pipeline of diffusers that takes `generator` as a list.
        captions: N of them; empty ones for an unconditional pipeline.
        seeds: S of them.
        batch_size: images per call.
        settings: further arguments of the pipeline's call.

    Returns:
        For each seed and level, innermost first, N images.
    """
    argument = NUMBER if takes_number(pipeline) else "prompt"
    plan = Generation("", type(pipeline).__name__, 0, len(captions), "", dict(settings or {}), argument)
    samples = []
    for seed in seeds:
        levels: list[list[Image.Image]] = []
        for start in range(0, len(captions), batch_size):
            batch = list(captions[start : start + batch_size])
            drawn = draw(pipeline, batch, [seed] * len(batch), plan)
            levels = [[*level, *more] for level, more in zip(levels or [[] for _ in drawn], drawn, strict=True)]
        samples.append(levels)
    return samples


def sample_sheet(
    samples: Sequence[Sequence[Sequence[Image.Image]]],
    captions: Sequence[str],
    seeds: Sequence[int],
    truth: Sequence[Image.Image | None] | None = None,
) -> Image.Image:
    """Lay out samples in one row per caption: all levels of the first seed, the outermost of the others, and the real
    image.

    Args:
        samples: for each seed and level, innermost first, one image per caption.
        captions: N of them, the labels of the rows.
        seeds: the seed of each sample, the labels of the columns.
        truth: the real image of each caption, or None where there is none; None for no such column.
    """
    first, *others = samples
    columns: list[tuple[str, Sequence[Image.Image | None]]] = [
        (f"{size_name(level[0])}, seed {seeds[0]}", level) for level in first
    ]
    columns += [(f"seed {seed}", levels[-1]) for seed, levels in zip(seeds[1:], others, strict=True)]
    if truth is not None:
        columns.append((REAL, truth))
    font = ImageFont.load_default(FONT_SIZE)
    largest = max(first[-1][0].size)
    cell = largest * math.ceil(MIN_CELL / largest)
    header = FONT_SIZE + 4 + 2 * GAP
    size = (LABEL_WIDTH + 2 * GAP + len(columns) * (cell + GAP), header + len(captions) * (cell + GAP))
    sheet = Image.new("RGB", size, "white")
    ink = ImageDraw.Draw(sheet)
    for row, caption in enumerate(captions):
        middle = header + row * (cell + GAP) + cell // 2
        ink.multiline_text((GAP, middle), wrap_label(caption, font, LABEL_WIDTH), INK, font, anchor="lm")
    for number, (title, images) in enumerate(columns):
        left = LABEL_WIDTH + 2 * GAP + number * (cell + GAP)
        ink.text((left, GAP), title, INK, font)
        for row, image in enumerate(images):
            if image is not None:
                sheet.paste(fitted(image, cell), (left, header + row * (cell + GAP)))
    return sheet


def fitted(image: Image.Image, side: int) -> Image.Image:
    """Resize an image such that its longer side has `side` pixels: enlarged, to show its pixels, or averaged down."""
    longest = max(image.size)
    if longest == side:
        return image
    filter_ = Image.Resampling.NEAREST if longest < side else Image.Resampling.BOX
    return image.resize((round(image.width * side / longest), round(image.height * side / longest)), filter_)
