# SPDX-License-Identifier: Apache-2.0
"""Compare upscaling by the model with enlargement by filters and with text-to-image generation.

Held-out images of the emoji data set are averaged down to the size of the inner level. From the small image, the
caption and a seed, `MDMUpscalePipeline` generates the outer level again, several times. It is compared, image by
image, with

- enlargement by Pillow's nearest, bicubic and Lanczos filters;
- bicubic enlargement moved to the nearest image with the given averages, so that it also uses how the small image was
    made;
- the same upscaling without the caption;
- text to image from the same captions and seeds, without the small image, in the settings of the model's folder.

One result is a sample of what the large image may have been. The estimate with the least squared error is not a sample
but the mean over all possible images, so the mean of several samples is measured too. It is blurred where they differ.

Measures, computed for each image, with values in [0, 1]:

- mse: squared error, mean over pixels and colours; psnr = -10 log10 mse, in dB.
- ssim: structural similarity (Wang et al. 2004; Gaussian window of 11 pixels, sigma 1.5), from torchmetrics.
- spectrum: log-spectral distance in dB, sqrt(mean over rings of (10 log10(P / P_true))^2), where P is the mean power
  of the grey image in rings of the Fourier plane, one cycle wide, from 1 to half the side. Blocks, blur and grain
  increase it; shifting details by a few pixels does not.
- detail: 10 log10(P / P_true) in dB over all frequencies that the small image cannot represent. Below 0 the image is
  blurred, above 0 it is grainier than the original. Its distance from 0 is compared.
- given: root mean squared error after averaging down, in 8-bit steps: how far the result deviates from the input.

Half of the held-out images, chosen by a fixed seed, are for choosing settings, the others for the report. Settings are
compared image by image with the first ones that were tried; those that are in the folder already are not run again:

python benchmarks/upscaling.py --split tuning --num_images 24 --eta 1 0 --output_dir runs/upscaling
python benchmarks/upscaling.py --output_dir runs/upscaling
"""

from __future__ import annotations

import argparse
import dataclasses
import io
import itertools
import json
import math
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from matplotlib.figure import Figure
from measuring import ROOT, describe_machine, write_numbers
from PIL import Image
from torchmetrics.functional.image import structural_similarity_index_measure

from diffusers_mdm import MDMPipeline, MDMUpscalePipeline
from diffusers_mdm.pipelines.drawing.consistency import project_onto_average
from diffusers_mdm.pyramid import build_pyramid
from diffusers_mdm.training.data.batch import to_unit_range
from diffusers_mdm.training.data.images import open_image, square_pixels
from diffusers_mdm.training.data.tables.splits import encoded_file, load_captioned_split, own_files
from diffusers_mdm.training.recipe.data import TableData

MODEL_DIR = ROOT / "model_cards" / "mdm-emoji-64"
DATA_DIR = ROOT / "training" / "data" / "emoji-styles-64"
SPLITS = ("tuning", "report")
FILTERS = {
    "nearest": Image.Resampling.NEAREST,
    "bicubic": Image.Resampling.BICUBIC,
    "lanczos": Image.Resampling.LANCZOS,
}
PROJECTED = "bicubic, given averages"
ONE, MEAN = "upscaled, one drawing", "upscaled, mean of drawings"
TRIED_FILE = "tried.json"
NO_CAPTION, NO_IMAGE = "upscaled without caption", "text to image"
# Measures whose distance from 0 is compared.
SIGNED = ("detail",)


@dataclasses.dataclass(frozen=True)
class HeldOut:
    """Held-out images `(N, 3, S, S)` in [0, 1], with the inputs of the pipelines.

    Attributes:
        numbers: the numbers of their records in the split, which also seed their noise.
        captions: one per image.
        large: the original images.
        small: the images averaged down, `(N, 3, s, s)`.
    """

    numbers: list[int]
    captions: list[str]
    large: torch.Tensor
    small: torch.Tensor

    def batches(self, size: int) -> list[HeldOut]:
        """Yield the images in order, `size` at a time."""
        cuts = [slice(start, start + size) for start in range(0, len(self.numbers), size)]
        return [HeldOut(self.numbers[c], self.captions[c], self.large[c], self.small[c]) for c in cuts]


@dataclasses.dataclass(frozen=True)
class Settings:
    """Arguments of `MDMUpscalePipeline`; the defaults were the best on the tuning images."""

    num_inference_steps: int = 5
    guidance_scale: float = 1.0
    num_resampling_steps: int = 4
    eta: float = 1.0


def split_numbers(num_records: int, split: str, num_images: int | None, seed: int = 0) -> list[int]:
    """Return the numbers of the records for tuning or for the report: disjoint halves, cut to `num_images`."""
    order = torch.randperm(num_records, generator=torch.Generator().manual_seed(seed)).tolist()
    half = num_records // 2
    return (order[:half] if split == "tuning" else order[half:])[:num_images]


def load_held_out(data_dir: Path, split: str, num_images: int | None, sides: Sequence[int]) -> HeldOut:
    """Read the validation split; `sides` are the sides of the small and of the original images."""
    recipe = TableData(path=str(data_dir))
    data = load_captioned_split(recipe, "validation")
    numbers, allowed = split_numbers(len(data), split, num_images), own_files(recipe)
    chosen = data.select(numbers)
    images = (open_image(encoded_file(cell, allowed)) for cell in chosen[recipe.image_column])
    pixels = torch.stack([square_pixels(image, sides[-1]) for image in images])
    small, large = build_pyramid(to_unit_range(pixels), sides)
    return HeldOut(numbers, chosen[recipe.caption_column][:], (large + 1) / 2, (small + 1) / 2)


def enlarge(images: torch.Tensor, side: int, resampling: Image.Resampling) -> torch.Tensor:
    """Enlarge `(B, C, h, w)` to a square with one of Pillow's filters, in floating point, clipped to [0, 1]."""
    planes = [Image.fromarray(plane.numpy()).resize((side, side), resampling) for plane in images.flatten(0, 1)]
    flat = torch.stack([torch.frombuffer(bytearray(plane.tobytes()), dtype=torch.float32) for plane in planes])
    return flat.view(*images.shape[:2], side, side).clamp(0, 1)


def ring_powers(images: torch.Tensor) -> torch.Tensor:
    """Return the mean power of the grey image in rings of the Fourier plane, `(B, S / 2)`: 1, 2, … S / 2 cycles per
    side.
    """
    side = images.shape[-1]
    spectrum = torch.fft.fft2(images.mean(1), norm="ortho").abs().square().flatten(1)
    frequency = torch.fft.fftfreq(side, 1 / side)
    ring = (frequency[:, None].square() + frequency.square()).sqrt().round().long().flatten()
    sums = torch.zeros(len(images), int(ring.max()) + 1).index_add_(1, ring, spectrum)
    return (sums / ring.bincount())[:, 1 : side // 2 + 1]


def measure(images: torch.Tensor, truth: torch.Tensor, small: torch.Tensor) -> dict[str, torch.Tensor]:
    """Compute the measures listed at the top of this file, each `(B,)`, for `(B, 3, S, S)` in [0, 1]; `small` is the
    input.
    """
    mse = (images - truth).square().mean(dim=(1, 2, 3))
    # A hundredth of an 8-bit step, so that an empty ring is not infinitely far from an almost empty one.
    floor = (0.01 / 255) ** 2
    powers, true_powers = ring_powers(images) + floor, ring_powers(truth) + floor
    decibels = 10 * (powers / true_powers).log10()
    beyond = slice(small.shape[-1] // 2, None)
    error = F.adaptive_avg_pool2d(images, small.shape[-2:]) - small
    return {
        "mse": mse,
        "psnr": -10 * mse.clamp(min=1e-10).log10(),
        "ssim": structural_similarity_index_measure(images, truth, data_range=1.0, reduction="none"),
        "spectrum": decibels.square().mean(1).sqrt(),
        "detail": 10 * (powers[:, beyond].sum(1) / true_powers[:, beyond].sum(1)).log10(),
        "given": 255 * error.square().mean(dim=(1, 2, 3)).sqrt(),
    }


def filtered(held_out: HeldOut) -> dict[str, torch.Tensor]:
    """Return the small images enlarged by each filter."""
    side = held_out.large.shape[-1]
    images = {name: enlarge(held_out.small, side, resampling) for name, resampling in FILTERS.items()}
    projected = project_onto_average(2 * images["bicubic"] - 1, 2 * held_out.small - 1)
    return {**images, PROJECTED: (projected + 1) / 2}


def upscale(
    pipeline: MDMUpscalePipeline, held_out: HeldOut, settings: Settings, num_samples: int, prompts: list[str]
) -> torch.Tensor:
    """Generate `(N, num_samples, 3, S, S)`; sample k of record r has the seed 100003 k + r."""
    images = pipeline(
        prompts,
        held_out.small,
        num_images_per_prompt=num_samples,
        generator=generators(held_out.numbers, num_samples),
        output_type="pt",
        **dataclasses.asdict(settings),
    ).images
    return images.float().unflatten(0, (-1, num_samples))


def generators(numbers: Sequence[int], num_samples: int) -> list[torch.Generator]:
    """Return one generator per sample, those of the first image first."""
    seeds = [100003 * sample + number for number in numbers for sample in range(num_samples)]
    return [torch.Generator().manual_seed(seed) for seed in seeds]


def draw(
    pipeline: MDMUpscalePipeline, held_out: HeldOut, settings: Settings, num_samples: int, is_report: bool
) -> dict[str, torch.Tensor]:
    """Return the images of every method, for the report also those made without the caption or without the small
    image.
    """
    samples = upscale(pipeline, held_out, settings, num_samples, held_out.captions)
    drawn = {ONE: samples[:, 0], MEAN: samples.mean(1)}
    if is_report:
        unguided = dataclasses.replace(settings, guidance_scale=1.0)
        drawn[NO_CAPTION] = upscale(pipeline, held_out, unguided, 1, [""] * len(held_out.numbers))[:, 0]
        text_to_image = MDMPipeline.from_pipe(pipeline)
        text_to_image.set_progress_bar_config(disable=True)
        drawn[NO_IMAGE] = text_to_image(
            held_out.captions, generator=generators(held_out.numbers, 1), output_type="pt"
        ).images.float()
    return drawn


def mean_and_error(values: torch.Tensor) -> list[float]:
    """Return the mean and its standard error."""
    return [float(values.mean()), float(values.std() / math.sqrt(len(values)))]


def summarise(values: dict[str, dict[str, torch.Tensor]], reference: str) -> dict[str, dict[str, Any]]:
    """Return the mean of each measure over the images, and its paired difference from `reference`, with standard
    errors.
    """
    summary: dict[str, dict[str, Any]] = {}
    for name, measures in values.items():
        summary[name] = {}
        for key, value in measures.items():
            other = values[reference][key]
            difference = value.abs() - other.abs() if key in SIGNED else value - other
            summary[name][key] = {"mean": mean_and_error(value), f"over {reference}": mean_and_error(difference)}
    return summary


def compare(
    pipeline: MDMUpscalePipeline,
    held_out: HeldOut,
    settings: Settings,
    num_samples: int,
    is_report: bool,
    batch_size: int,
) -> tuple[dict[str, dict[str, torch.Tensor]], dict[str, torch.Tensor]]:
    """Return the measures of every method for each image, and the images."""
    parts = []
    for batch in held_out.batches(batch_size):
        parts.append(filtered(batch) | draw(pipeline, batch, settings, num_samples, is_report))
    images = {name: torch.cat([part[name] for part in parts]) for name in parts[0]}
    values = {name: measure(entry, held_out.large, held_out.small) for name, entry in images.items()}
    return values, images


def print_summary(summary: dict[str, dict[str, Any]], reference: str) -> None:
    """Print two lines per method: the means, and below them the differences with their standard errors."""
    for name, measures in summary.items():
        print(f"{name:28}" + "".join(f"  {key} {entry['mean'][0]:.4g}" for key, entry in measures.items()))
        if name != reference:
            differences = {key: entry[f"over {reference}"] for key, entry in measures.items()}
            print(" " * 28 + "".join(f"  {key} {mean:+.3g}±{error:.2g}" for key, (mean, error) in differences.items()))


def add_tried(folder: Path, settings: Settings, values: dict[str, dict[str, torch.Tensor]]) -> None:
    """Add the measures of each image with these settings to the file of all settings that were tried."""
    folder.mkdir(parents=True, exist_ok=True)
    measured = {
        method: {name: value.tolist() for name, value in entry.items()}
        for method, entry in values.items()
        if method in ("bicubic", ONE, MEAN)
    }
    tried = [*read_tried(folder), {"settings": dataclasses.asdict(settings), "values": measured}]
    (folder / TRIED_FILE).write_text(json.dumps(tried) + "\n", encoding="utf-8")


def read_tried(folder: Path | None) -> list[dict[str, Any]]:
    """Return the settings that were tried, in order, with their measures of each image."""
    path = None if folder is None else folder / TRIED_FILE
    return json.loads(path.read_text(encoding="utf-8")) if path is not None and path.exists() else []


def table_of_tried(tried: Sequence[dict[str, Any]]) -> str:
    """Return a Markdown table of squared errors; differences are those from the first settings, paired by image."""
    lines = ["| settings | one sample | difference | mean of samples | difference |", "|---|--:|--:|--:|--:|"]
    for entry in tried:
        cells = [", ".join(f"{value:g}" for value in entry["settings"].values())]
        for method in (ONE, MEAN):
            errors, first = (torch.tensor(one["values"][method]["mse"]) for one in (entry, tried[0]))
            for mean, error in (mean_and_error(errors), mean_and_error(errors - first)):
                cells.append(f"{mean:.4f} ± {error:.4f}")
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def draw_grid(held_out: HeldOut, images: dict[str, torch.Tensor], columns: int, path: Path) -> None:
    """Draw one column per image: input, bicubic, one sample, mean of samples, one without caption, original."""
    lines = {"given": held_out.small, **{name: images[name] for name in ("bicubic", ONE, MEAN, NO_CAPTION)}}
    lines["truth"] = held_out.large
    figure = Figure(figsize=(0.9 * columns + 0.2, 0.9 * len(lines)), dpi=100, layout="constrained")
    panels = figure.subplots(len(lines), columns, squeeze=False)
    for row, (name, entries) in zip(panels, lines.items(), strict=True):
        label = name.replace(", ", ",\n").replace(" of ", " of\n").replace(" without ", "\nwithout ")
        row[0].set_ylabel(label, fontsize=6)
        for panel, image in zip(row, entries, strict=False):
            panel.imshow(image.permute(1, 2, 0).clamp(0, 1).numpy(), interpolation="nearest")
            panel.set_xticks([])
            panel.set_yticks([])
            panel.spines[:].set_visible(False)
    drawn = io.BytesIO()
    figure.savefig(drawn, format="png")
    Image.open(drawn).convert("RGB").quantize(colors=256).save(path, optimize=True)


def parse_args(argv: list[str] | None) -> argparse.Namespace:
    """Parse the flags; if a setting has several values, all are tried."""
    defaults = Settings()
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--model_dir", default=str(MODEL_DIR), help="pipeline folder or Hub id")
    parser.add_argument("--data_dir", type=Path, default=DATA_DIR)
    parser.add_argument("--split", choices=SPLITS, default="report", help="which half of the held-out images to use")
    parser.add_argument("--num_images", type=int, help="number of images of that half (default: all)")
    parser.add_argument("--num_samples", type=int, default=4, help="samples per image")
    parser.add_argument("--batch_size", type=int, default=12, help="images per pipeline call")
    parser.add_argument("--num_inference_steps", type=int, nargs="+", default=[defaults.num_inference_steps])
    parser.add_argument("--guidance_scale", type=float, nargs="+", default=[defaults.guidance_scale])
    parser.add_argument("--num_resampling_steps", type=int, nargs="+", default=[defaults.num_resampling_steps])
    parser.add_argument("--eta", type=float, nargs="+", default=[defaults.eta])
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32", help="dtype of the model")
    parser.add_argument("--attention_backend", help="of diffusers")
    parser.add_argument("--grid_columns", type=int, default=10)
    parser.add_argument("--output_dir", type=Path, help="folder for the numbers and the grid of images")
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> None:
    """Measure and print every combination of settings, and write the results of the last one."""
    args = parse_args(argv)
    pipeline = MDMUpscalePipeline.from_pretrained(args.model_dir, dtype=getattr(torch, args.dtype))
    pipeline.set_progress_bar_config(disable=True)
    if args.attention_backend is not None:
        pipeline.unet.set_attention_backend(args.attention_backend)
    sides = pipeline.unet.sample_sizes
    held_out = load_held_out(args.data_dir, args.split, args.num_images, (sides[0], sides[-1]))
    is_report, folder = args.split == "report", args.output_dir
    print(f"{describe_machine('cpu')}; {len(held_out.numbers)} images ({args.split}), {args.num_samples} samples each")
    tried = itertools.product(args.num_inference_steps, args.guidance_scale, args.num_resampling_steps, args.eta)
    for settings in itertools.starmap(Settings, tried):
        if not is_report and dataclasses.asdict(settings) in [entry["settings"] for entry in read_tried(folder)]:
            continue
        start = time.perf_counter()
        values, images = compare(pipeline, held_out, settings, args.num_samples, is_report, args.batch_size)
        summary = summarise(values, "bicubic")
        print(f"{settings}, {time.perf_counter() - start:.0f} s", flush=True)
        print_summary(summary, "bicubic")
        if folder is not None and not is_report:
            add_tried(folder, settings, values)
    if folder is None:
        return
    if not is_report:
        print(table_of_tried(read_tried(folder)))
        return
    folder.mkdir(parents=True, exist_ok=True)
    report = {
        "machine": describe_machine("cpu"),
        "settings": dataclasses.asdict(settings),
        "images": len(held_out.numbers),
        "drawings": args.num_samples,
        "measures": {name: round_all(entry) for name, entry in summary.items()},
    }
    write_numbers(folder / "upscaling.json", report)
    draw_grid(held_out, images, min(args.grid_columns, len(held_out.numbers)), folder / "upscaling.png")


def round_all(entry: Any) -> Any:
    """Round to four digits, which is more precise than the standard errors."""
    if isinstance(entry, dict):
        return {key: round_all(value) for key, value in entry.items()}
    return [float(f"{value:.4g}") for value in entry]


if __name__ == "__main__":
    main()
