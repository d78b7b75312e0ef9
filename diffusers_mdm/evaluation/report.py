# SPDX-License-Identifier: Apache-2.0
"""Reports of an evaluation: a table, a contact sheet, and a section for the model card."""

from __future__ import annotations

import math
from collections.abc import Sequence

from PIL import Image

from .generate import Generation
from .images import Images
from .sample_sheet import fitted
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
    "retrieval_own_image": "nearest image has the same caption",
    "retrieval_distance": "distance to the nearest real image",
    "retrieval_real_distance": "the same between real images",
    "retrieval_covered": "fraction of real images that are nearest to a generated one",
    "noise": "noise in white corners",
    "noise_corners": "white corners",
    "distance_to_truth": "distance to the real image",
}
SHARES = {"precision", "recall", "retrieval_own_image", "retrieval_covered"}
THOUSANDTHS = {"kid", "kid_error"}


def show(name: str, value: float) -> str:
    """Format a value for reports."""
    if math.isnan(value):
        return "–"
    if name in SHARES:
        return f"{value:.1%}"
    if name == "noise_corners":
        return f"{value:.0f}"
    return f"{value * 1000:.4g}" if name in THOUSANDTHS else f"{value:.4g}"


def markdown_table(scores: Scores) -> str:
    """Return a Markdown table with one row per measure and one column per level, innermost first."""
    sides = sorted(scores.levels)
    names = [name for name in TITLES if any(name in level for level in scores.levels.values())]
    lines = ["| | " + " | ".join(f"{side} px" for side in sides) + " |", "|---|" + "--:|" * len(sides)]
    for name in names:
        cells = [show(name, scores.levels[side].get(name, float("nan"))) for side in sides]
        lines.append(f"| {TITLES[name]} | " + " | ".join(cells) + " |")
    if scores.disagreement:
        cells = ["–", *(f"{value:.4g}" for value in scores.disagreement)]
        lines.append("| difference from the level inside, averaged down | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def describe_left_out(scores: Scores) -> str:
    """Say which metrics were left out at which sides; an empty text if there are none."""
    parts = [f"{', '.join(names)} at {side} pixels" for side, names in sorted(scores.left_out.items())]
    return f"Left out, because the reference has no features for them: {'; '.join(parts)}." if parts else ""


def card_section(scores: Scores, generation: Generation, command: str) -> str:
    """Return a section for the model card with the command, the settings and the table."""
    settings = ", ".join(f"{name} {value}" for name, value in generation.settings.items()) or "default settings"
    left_out = f"{describe_left_out(scores)}\n\n" if scores.left_out else ""
    return (
        f"## Evaluation\n\n{scores.num_drawn} generated images ({settings}; seeds from {generation.seed}) compared "
        f"with {scores.num_real} real images:\n\n{markdown_table(scores)}\n\n{left_out}Measured by\n\n"
        f"    {command}\n\n"
        "Distances depend on the number of images; compare only distances with the same numbers.\n"
    )


def contact_sheet(drawn: Sequence[Images], truth: Images | None, number: int = 40, columns: int = 10) -> Image.Image:
    """Lay out the first images in rows, those of several models for the same caption above each other, and the real
    image below them if there is one.

    Args:
        drawn: the generated images of one level for each model; smaller ones are enlarged to the size of the largest.
        truth: the real images of the same captions, in the same order.
        number: number of captions.
        columns: number of columns of the sheet.

    Raises:
        ValueError: the models have generated images for different captions.
    """
    shown = list(range(min(number, *(len(images) for images in drawn))))
    for other in drawn[1:]:
        if list(other.captions)[: len(shown)] != list(drawn[0].captions)[: len(shown)]:
            raise ValueError(
                "The images were generated for different captions; run `diffusers-mdm evaluate generate` with the "
                "same data, --num_captions and --seed for every model."
            )
    rows = [images.load(shown) for images in [*drawn, *([] if truth is None else [truth])]]
    side = max(pixels.shape[-1] for pixels in rows[: len(drawn)])
    tiles = [[fitted(Image.fromarray(image.permute(1, 2, 0).numpy()), side) for image in pixels] for pixels in rows]
    return lay_out(list(zip(*tiles, strict=True)), columns)


def lay_out(tiles: Sequence[Sequence[Image.Image]], columns: int, gap: int = 2) -> Image.Image:
    """Arrange stacks of equally large images side by side in rows, on white."""
    width, height = tiles[0][0].size
    depth = len(tiles[0])
    rows = math.ceil(len(tiles) / columns)
    stack = depth * (height + gap) + 2 * gap
    sheet = Image.new("RGB", (min(columns, len(tiles)) * (width + gap) + gap, rows * stack + gap), "white")
    for place, tile in enumerate(tiles):
        left, top = gap + place % columns * (width + gap), gap + place // columns * stack
        for entry, image in enumerate(tile):
            sheet.paste(image, (left, top + entry * (height + gap)))
    return sheet
