# SPDX-License-Identifier: Apache-2.0
"""What people see of an evaluation: a table, a contact sheet, and a section for the model card."""

from __future__ import annotations

import math
from collections.abc import Sequence

from PIL import Image

from .generate import Generation
from .pictures import Pictures
from .score import Scores

TITLES = {
    "fid": "Fréchet distance (Inception-v3)",
    "kid": "KID × 1000",
    "kid_error": "KID × 1000, standard error",
    "precision": "precision",
    "recall": "recall",
    "fd_dinov2": "Fréchet distance (DINOv2)",
    "cmmd": "CMMD",
    "clip_score": "CLIP score",
    "retrieval_own_picture": "nearest picture is the captioned one",
    "retrieval_distance": "distance to the nearest real picture",
    "retrieval_real_distance": "the same between real pictures",
    "retrieval_covered": "share of real pictures that are nearest to a drawing",
    "noise": "noise in white corners",
    "noise_corners": "white corners",
    "distance_to_truth": "distance to the true picture",
}
SHARES = {"precision", "recall", "retrieval_own_picture", "retrieval_covered"}
THOUSANDTHS = {"kid", "kid_error"}


def show(name: str, value: float) -> str:
    """A value as reports print it."""
    if math.isnan(value):
        return "–"
    if name in SHARES:
        return f"{value:.1%}"
    if name == "noise_corners":
        return f"{value:.0f}"
    return f"{value * 1000:.4g}" if name in THOUSANDTHS else f"{value:.4g}"


def markdown_table(scores: Scores) -> str:
    """One row a measure, one column a level, innermost first."""
    sides = sorted(scores.levels)
    names = [name for name in TITLES if any(name in level for level in scores.levels.values())]
    lines = ["| | " + " | ".join(f"{side} px" for side in sides) + " |", "|---|" + "--:|" * len(sides)]
    for name in names:
        cells = [show(name, scores.levels[side].get(name, float("nan"))) for side in sides]
        lines.append(f"| {TITLES[name]} | " + " | ".join(cells) + " |")
    if scores.disagreement:
        cells = ["–", *(f"{value:.4g}" for value in scores.disagreement)]
        lines.append("| difference to the level inside, averaged down | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def card_section(scores: Scores, generation: Generation, command: str) -> str:
    """A section for the model card: the command, the settings and the table."""
    settings = ", ".join(f"{name} {value}" for name, value in generation.settings.items()) or "the pipeline's defaults"
    return (
        f"## Evaluation\n\n{scores.num_drawn} drawings ({settings}; seeds from {generation.seed}) compared with "
        f"{scores.num_real} real pictures:\n\n{markdown_table(scores)}\n\nMeasured by\n\n    {command}\n\n"
        "Distances depend on the number of pictures; compare them only with others of the same numbers.\n"
    )


def contact_sheet(drawn: Pictures, truth: Pictures | None, number: int = 40, columns: int = 10) -> Image.Image:
    """The first drawings in rows, each with the true picture below it if there is one.

    Args:
        drawn: the drawings of one level.
        truth: true pictures of the same captions in the same order; a multiple of the drawings' side.
        number: of drawings.
        columns: of the sheet.
    """
    shown = list(range(min(number, len(drawn))))
    pixels = [picture.permute(1, 2, 0).numpy() for picture in drawn.load(shown)]
    tiles = [[Image.fromarray(picture)] for picture in pixels]
    if truth is not None:
        for tile, picture in zip(tiles, truth.load(shown), strict=True):
            real = Image.fromarray(picture.permute(1, 2, 0).numpy())
            tile.append(real.resize(tile[0].size, Image.Resampling.BOX))
    return lay_out(tiles, columns)


def lay_out(tiles: Sequence[Sequence[Image.Image]], columns: int, gap: int = 2) -> Image.Image:
    """Put stacks of pictures of one size side by side in rows, on white."""
    width, height = tiles[0][0].size
    depth = len(tiles[0])
    rows = math.ceil(len(tiles) / columns)
    stack = depth * (height + gap) + 2 * gap
    sheet = Image.new("RGB", (min(columns, len(tiles)) * (width + gap) + gap, rows * stack + gap), "white")
    for place, tile in enumerate(tiles):
        left, top = gap + place % columns * (width + gap), gap + place // columns * stack
        for entry, picture in enumerate(tile):
            sheet.paste(picture, (left, top + entry * (height + gap)))
    return sheet
