# SPDX-License-Identifier: Apache-2.0
"""Draw the images of the README and of these pages, with a shipped model.

python docs/draw_images.py
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import torch
from matplotlib.figure import Figure
from matplotlib.patches import FancyBboxPatch
from PIL import Image, ImageDraw, ImageFont

from diffusers_mdm import MDMPipeline
from diffusers_mdm.demo import draw_pyramid, load_pipeline

ROOT = Path(__file__).parents[1]
IMAGES = ROOT / "docs" / "images"
# Chosen by hand among the captions that the model draws well.
PROMPTS = (
    "strawberry, 3d render",
    "fox, twemoji style",
    "sunflower, 3d render",
    "frog, 3d render",
    "rainbow, flat icon",
    "mushroom, 3d render",
    "panda, flat icon",
    "cat face, noto style",
)
CELL = 160  # pixels
GAP = 10  # pixels
MARGIN = 108  # pixels, for the names of the rows
INK = (60, 60, 60)


def grid(rows: list[list[Image.Image]], names: list[str], columns: list[str] | None = None) -> Image.Image:
    """Lay out rows of square images at the same size, enlarged without smoothing, with names beside and above them."""
    font = ImageFont.load_default(20)
    top = 36 if columns else 0
    width = MARGIN + len(rows[0]) * (CELL + GAP) - GAP
    sheet = Image.new("RGB", (width, top + len(rows) * (CELL + GAP) - GAP), "white")
    ink = ImageDraw.Draw(sheet)
    for column, name in enumerate(columns or ()):
        ink.text((MARGIN + column * (CELL + GAP) + CELL // 2, top // 2), name, INK, font, anchor="mm")
    for index, (row, name) in enumerate(zip(rows, names, strict=True)):
        y = top + index * (CELL + GAP)
        ink.text((MARGIN - 2 * GAP, y + CELL // 2), name, INK, font, anchor="rm")
        for column, image in enumerate(row):
            filter_ = Image.Resampling.NEAREST if image.width < CELL else Image.Resampling.LANCZOS
            sheet.paste(image.resize((CELL, CELL), filter_), (MARGIN + column * (CELL + GAP), y))
    return sheet


def draw_levels(pipeline: MDMPipeline) -> None:
    """Every level of several prompts: one column per prompt, one row per level."""
    levels = draw_pyramid(pipeline, PROMPTS)
    names = [f"{level[0].width} px" for level in levels]
    grid(levels, names).save(IMAGES / "levels.webp", quality=90, method=6)


def draw_steps(pipeline: MDMPipeline, steps: tuple[int, ...] = (0, 2, 3, 4, 5, 7)) -> None:
    """The samples of all levels as the noise goes, and below them a preview: the finished image that is predicted."""
    seen: dict[int, tuple[list[Any], list[Any]]] = {}

    def keep(pipeline: Any, step: int, timestep: Any, tensors: dict[str, Any]) -> dict[str, Any]:
        if step in steps:
            seen[step] = (list(tensors["latents"]), list(tensors["pred_original_sample"]))
        return {}

    pipeline(
        "fox, twemoji style",
        generator=torch.Generator().manual_seed(0),
        callback_on_step_end=keep,
        callback_on_step_end_tensor_inputs=["latents", "pred_original_sample"],
    )

    def shown(level: torch.Tensor) -> Image.Image:
        values = ((level[0].float().clamp(-1, 1) + 1) * 127.5).round().byte().permute(1, 2, 0)
        return Image.fromarray(values.numpy())

    num_levels = len(seen[steps[0]][0])
    rows = [[shown(seen[step][0][level]) for step in steps] for level in range(num_levels)]
    rows.append([shown(seen[step][1][-1]) for step in steps])
    names = [f"{side} px" for side in pipeline.unet.sample_sizes]
    columns = [f"step {step + 1}" for step in steps]
    grid(rows, [*names, "preview"], columns).save(IMAGES / "steps.webp", quality=80, method=6)


def draw_schedule(pipeline: MDMPipeline) -> None:
    """The log SNR of every level over t: one curve, shifted by the resolution."""
    alphas = pipeline.scheduler.alphas_cumprod.double()
    log_snr = torch.log(alphas) - torch.log1p(-alphas)
    sides = pipeline.unet.sample_sizes
    figure = Figure(figsize=(7, 3.4), layout="constrained")
    axes = figure.subplots()
    for side in sides:
        shift = pipeline.scheduler.config.shift_power * torch.log(torch.tensor(side / sides[0]))
        axes.plot(log_snr - shift, label=f"{side} px")
    axes.set(xlabel="timestep t", ylabel="log SNR", ylim=(-12, 10), xlim=(0, len(alphas)))
    axes.grid(alpha=0.3)
    axes.legend()
    figure.savefig(IMAGES / "schedule.png", dpi=110)


def draw_network(pipeline: MDMPipeline) -> None:
    """The nested U-Nets: the levels as boxes in boxes, with their sizes and parameters."""
    unet = pipeline.unet
    figure = Figure(figsize=(7, 3.6), layout="constrained")
    axes = figure.subplots()
    axes.set_axis_off()
    count = unet.num_levels
    colours = ["#d95f02", "#7570b3", "#1b9e77", "#666666"]
    for level in reversed(range(count)):
        inset = 1.4 * (count - 1 - level)
        low, high = inset * 0.55, 6 - inset * 0.55
        style = {"boxstyle": "round,pad=0.1", "fc": colours[level], "alpha": 0.28, "ec": "black"}
        box = FancyBboxPatch((inset, low), 12 - 2 * inset, high - low, **style)
        axes.add_patch(box)
        parameters = sum(parameter.numel() for parameter in unet.levels[level].parameters())
        text = f"level {level}: {unet.sample_sizes[level]} px, {parameters / 1e6:.1f} M parameters"
        axes.text(6, high - 0.35, text, ha="center", va="center", fontsize=9)
        axes.annotate("", (inset + 1.2, 3), (inset - 0.1, 3), arrowprops={"arrowstyle": "->"})
        axes.annotate("", (12 - inset + 0.1, 3), (12 - inset - 1.2, 3), arrowprops={"arrowstyle": "->"})
    axes.text(-0.3, 3.25, "noisy pyramid", ha="right", va="bottom", fontsize=9)
    axes.text(12.3, 3.25, "prediction of\nevery level", ha="left", va="bottom", fontsize=9)
    axes.set(xlim=(-2.6, 14.4), ylim=(-0.3, 6.3))
    figure.savefig(IMAGES / "network.png", dpi=110)


def main() -> None:
    """Draw all images, or those that are named."""
    makers = {"levels": draw_levels, "steps": draw_steps, "schedule": draw_schedule, "network": draw_network}
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", choices=list(makers), default=list(makers))
    args = parser.parse_args()
    pipeline = load_pipeline(ROOT / "model_cards" / "mdm-emoji-256")
    for name in args.only:
        makers[name](pipeline)


if __name__ == "__main__":
    main()
