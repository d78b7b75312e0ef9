# SPDX-License-Identifier: Apache-2.0
r"""Measure how far sampling settings end from the result of very many steps.

With very many steps, DDIM solves the probability-flow ODE of a model nearly exactly. For the first captions and the
seeds of `sampling.py`, images are generated in that many steps at times even in log SNR, once per guidance scale. The
images of every setting with plain guidance are compared with those of its own scale from the same noise. The measure
is the root mean square difference of the outermost level, of a range of 1: its mean over captions, and the standard
error of that over seeds. It says how well a setting solves the ODE, not how good its images are; for that, the same
distance to the real images of the captions stands beside it.

Images of the settings are taken from the folder of `sampling.py`, or generated into it:

python benchmarks/many_steps.py --output_dir runs/sampling --num_captions 32 --num_compared 4 --num_seeds 3
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import sampling
import torch
from measuring import describe_machine, write_numbers

from diffusers_mdm import MDMPipeline

COMPARED = {"num_inference_steps", "guidance_scale", "open_levels_at"}


def comparable_settings() -> dict[str, sampling.Setting]:
    """The settings of `sampling.py` that approximate the ODE of plain guidance with one scale for all levels."""
    return {
        name: setting
        for name, setting in sampling.SETTINGS.items()
        if setting.call.keys() <= COMPARED and isinstance(setting.call["guidance_scale"], float)
    }


def many_steps_of(setting: sampling.Setting, num_steps: int) -> tuple[str, sampling.Setting]:
    """Return the name and the setting of the images with which those of a setting are compared."""
    scale = setting.call["guidance_scale"]
    name = f"{num_steps} DDIM, log SNR, guidance {scale:g}"
    return name, sampling.drawn_in(num_steps, sampling.EVEN, guidance_scale=scale)


def measure(pipeline: MDMPipeline, truth: sampling.Truth, args: argparse.Namespace) -> list[dict[str, Any]]:
    """Return the distances of every setting that is asked for, and of many steps, from few to many operations."""
    settings, limits = {}, {}
    for name, setting in comparable_settings().items():
        if setting.call["guidance_scale"] in args.guidance_scales:
            limit, many = many_steps_of(setting, args.num_steps)
            settings[name], limits[name] = setting, limit
            settings[limit], limits[limit] = many, limit
    drawn = {
        name: [
            # Only the settings of `sampling.py` are drawn for all of its captions, since they share its folder.
            sampling.drawn_levels(
                pipeline,
                name,
                setting,
                seed,
                truth.captions[: args.num_compared] if name == limits[name] else truth.captions,
                args.output_dir,
                args.batch_size,
            )[-1][: args.num_compared]
            for seed in range(args.num_seeds)
        ]
        for name, setting in settings.items()
    }
    real = [truth.images[: args.num_compared]] * args.num_seeds
    found = [
        {
            "name": name,
            "distance": distance(images, drawn[limits[name]]),
            "real": distance(images, real),
            **sampling.costs(pipeline, settings[name], truth.captions[0]),
        }
        for name, images in drawn.items()
    ]
    return sorted(found, key=lambda entry: entry["gigaflops"])


def distance(images: Sequence[torch.Tensor], others: Sequence[torch.Tensor]) -> list[float]:
    """Return the mean over seeds of the distance between images, `(N, 3, S, S)` uint8 each, and its standard error."""
    by_seed = [sampling.pixel_distance(one, other) for one, other in zip(images, others, strict=True)]
    return [statistics.fmean(by_seed), sampling.standard_error(by_seed)]


def markdown_table(entries: Sequence[Mapping[str, Any]], num_steps: int) -> str:
    """Return a Markdown table with one row per setting."""
    lines = [
        f"| setting | calls | GFLOP | distance to {num_steps:,} steps | to the real images |",
        "|---|--:|--:|--:|--:|",
    ]
    for entry in entries:
        cells = [sampling.number_with_error(entry[key], 4) for key in ("distance", "real")]
        lines.append(f"| {entry['name']} | {entry['calls']:.0f} | {entry['gigaflops']:.1f} | {' | '.join(cells)} |")
    return "\n".join(lines)


def parse_args() -> argparse.Namespace:
    """The command's flags."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output_dir", type=Path, required=True, help="the folder of sampling.py")
    parser.add_argument("--model_dir", type=Path, default=sampling.MODEL_DIR)
    parser.add_argument("--data_dir", type=Path, default=sampling.DATA_DIR)
    parser.add_argument("--num_captions", type=int, default=32, help="as for sampling.py")
    parser.add_argument("--num_compared", type=int, default=4, help="how many of them are compared, the first ones")
    parser.add_argument("--num_seeds", type=int, default=3)
    parser.add_argument("--num_steps", type=int, default=1000)
    parser.add_argument("--guidance_scales", type=float, nargs="+", default=[1.0, 1.5, 2.0])
    parser.add_argument("--batch_size", type=int, default=16)
    return parser.parse_args()


def main() -> None:
    """Generate, measure, print and save."""
    args = parse_args()
    pipeline = MDMPipeline.from_pretrained(args.model_dir, dtype=torch.float32)
    pipeline.set_progress_bar_config(disable=True)
    truth = sampling.load_truth(args.data_dir, pipeline.image_sides[-1], args.num_captions)
    entries = measure(pipeline, truth, args)
    kept = ("num_steps", "num_compared", "num_seeds")
    result = {"machine": describe_machine("cpu"), **{key: getattr(args, key) for key in kept}, "settings": entries}
    write_numbers(args.output_dir / "many_steps.json", result)
    print(markdown_table(entries, args.num_steps))


if __name__ == "__main__":
    main()
