# SPDX-License-Identifier: Apache-2.0
r"""Measure what fewer steps do to images of names without a style, which the emoji model has seen in several styles.

Captions with a style are learnt by heart, one image each, and say little about variety. For names chosen from the
training data, images are generated in several numbers of steps (DDIM, even in log SNR, guidance 1.5) from the same
noise, once per seed. Measured are, each with its standard error over seeds:

- KID of Inception-v3 features from those of real images (`--reference`), and its paired difference from the first
  number of steps;
- variety: root mean square difference between two images of the same name from different seeds, of a range of 1, mean
  over names and pairs of seeds.

python training/evaluate.py reference --data_dir training/data/emoji-styles-64 --split train --num_images 1000 \
  --sides 64 --output_dir runs/reference
python benchmarks/names_alone.py --output_dir runs/names --reference runs/reference
"""

from __future__ import annotations

import argparse
import random
import statistics
from collections.abc import Mapping, Sequence
from itertools import combinations
from pathlib import Path
from typing import Any

import sampling
import torch
from measuring import describe_machine, write_numbers

from diffusers_mdm import MDMPipeline
from diffusers_mdm.evaluation.distances import kernel_distance_of_all
from diffusers_mdm.evaluation.features import InceptionFeatures
from diffusers_mdm.evaluation.reference import load_reference
from diffusers_mdm.training.data.tables.splits import load_all_splits
from diffusers_mdm.training.recipe.data import TableData


def choose_names(data_dir: Path, number: int) -> list[str]:
    """Return this many of the names in the training data, the same every time."""
    names = sorted(set(load_all_splits(TableData(path=data_dir))["train"]["label"]))
    random.Random(0).shuffle(names)
    return names[:number]


def measure(pipeline: MDMPipeline, names: Sequence[str], real: sampling.Real, args: argparse.Namespace) -> list[dict]:
    """Return what was measured for each number of steps."""
    found: list[dict[str, Any]] = []
    kernel: dict[int, list[float]] = {}
    for num_steps in args.steps:
        setting, name = sampling.drawn_in(num_steps, sampling.EVEN, guidance_scale=1.5), f"names {num_steps}"
        images = [
            sampling.drawn_levels(pipeline, name, setting, seed, names, args.output_dir, args.batch_size)[-1]
            for seed in range(args.num_seeds)
        ]
        features = [real.of_folder(sampling.folder_of(args.output_dir, name, seed)) for seed in range(args.num_seeds)]
        kernel[num_steps] = [kernel_distance_of_all(one, real.features) for one in features]
        changes = [one - first for one, first in zip(kernel[num_steps], kernel[args.steps[0]], strict=True)]
        variety = [sampling.pixel_distance(one, other) for one, other in combinations(images, 2)]
        found.append(
            {
                "steps": num_steps,
                "kid": [statistics.fmean(kernel[num_steps]), sampling.standard_error(kernel[num_steps])],
                "kid difference": [statistics.fmean(changes), sampling.standard_error(changes)],
                "variety": statistics.fmean(variety),
            }
        )
        print(found[-1], flush=True)
    return found


def markdown_table(entries: Sequence[Mapping[str, Any]]) -> str:
    """Return a Markdown table with one row per number of steps."""
    lines = ["| steps | KID | difference | variety |", "|--:|--:|--:|--:|"]
    for entry in entries:
        cells = [sampling.number_with_error(entry[key], 4) for key in ("kid", "kid difference")]
        lines.append(f"| {entry['steps']} | {' | '.join(cells)} | {entry['variety']:.3f} |")
    return "\n".join(lines)


def parse_args() -> argparse.Namespace:
    """The command's flags."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output_dir", type=Path, required=True, help="folder for images and numbers")
    parser.add_argument("--reference", type=Path, required=True, help="features of real images")
    parser.add_argument("--model_dir", type=Path, default=sampling.MODEL_DIR)
    parser.add_argument("--data_dir", type=Path, default=sampling.DATA_DIR)
    parser.add_argument("--steps", type=int, nargs="+", default=[12, 8, 4], help="the first one is compared with")
    parser.add_argument("--num_names", type=int, default=100)
    parser.add_argument("--num_seeds", type=int, default=3, help="at least 2")
    parser.add_argument("--batch_size", type=int, default=25)
    return parser.parse_args()


def main() -> None:
    """Generate, measure, print and save."""
    args = parse_args()
    pipeline = MDMPipeline.from_pretrained(args.model_dir, dtype=torch.float32)
    pipeline.set_progress_bar_config(disable=True)
    features = load_reference(args.reference).features["inception", pipeline.image_sides[-1]]
    names = choose_names(args.data_dir, args.num_names)
    entries = measure(pipeline, names, sampling.Real(InceptionFeatures(), features), args)
    result = {"machine": describe_machine("cpu"), "num_names": len(names), "num_seeds": args.num_seeds}
    write_numbers(args.output_dir / "names_alone.json", {**result, "steps": entries})
    print(markdown_table(entries))


if __name__ == "__main__":
    main()
