# SPDX-License-Identifier: Apache-2.0
"""The flags of `diffusers-mdm generate`, in groups."""

import argparse
import json
from pathlib import Path
from typing import Any

from ...training.commands.flag_values import count, number, seed

# Flags that are arguments of the pipeline's call, under the same names.
CALL_FLAGS = (
    "height",
    "num_inference_steps",
    "guidance_scale",
    "guidance_rescale",
    "guider",
    "eta",
    "level_agreement",
    "open_levels_at",
    "num_inner_steps",
    "max_sequence_length",
)
SCHEDULER_FLAGS = {"solver": "algorithm", "solver_order": "solver_order", "timestep_spacing": "timestep_spacing"}
DTYPES = ("float32", "bfloat16", "float16")
FORMATS = ("png", "jpg", "webp", "gif", "mp4")


def add_contents(group: argparse._ArgumentGroup) -> None:
    """Add the flags of prompts, classes and seeds."""
    group.add_argument("--prompts", nargs="+", metavar="TEXT", help="one file per text (and image of it)")
    group.add_argument("--prompts_file", type=Path, metavar="FILE", help="text file with one prompt per line")
    group.add_argument("--classes", nargs="+", metavar="CLASS", help="names or numbers, for models with classes")
    group.add_argument("--negative_prompt", metavar="TEXT", help="what guidance leads away from, for all prompts")
    group.add_argument("--num_images", type=count, default=1, metavar="N", help="per prompt or class (default 1)")
    group.add_argument("--seed", type=seed, default=0, metavar="N", help="file i has the seed SEED + i (default 0)")


def add_drawing(group: argparse._ArgumentGroup) -> None:
    """Add the flags of solver, steps and guidance."""
    group.add_argument("--height", type=count, metavar="PIXELS", help="side of the outermost level to generate")
    group.add_argument("--num_inference_steps", type=count, metavar="N", help="number of steps")
    group.add_argument("--solver", metavar="NAME", help="ddim or dpmsolver++, for example (default: the model's)")
    group.add_argument("--solver_order", type=count, metavar="N", help="order of the solver, 1 or 2")
    group.add_argument("--timestep_spacing", metavar="NAME", help="log_snr, for example, which suits dpmsolver++")
    group.add_argument("--eta", type=number, metavar="X", help="0 for DDIM to 1 for ancestral sampling (default 0)")
    group.add_argument(
        "--guidance_scale", type=number, nargs="+", metavar="W", help="one, or one per level, innermost first"
    )
    group.add_argument("--guidance_rescale", type=number, metavar="X", help="0 to 1 (arXiv:2305.08891)")
    group.add_argument(
        "--guider", type=guider, metavar="NAME_OR_JSON", help='e.g. \'{"name": "interval", "low": -4}\''
    )
    group.add_argument(
        "--level_agreement", type=number, nargs="+", metavar="X", help="0 to 1: outer levels average to inner"
    )
    group.add_argument("--open_levels_at", type=number, metavar="X", help="log SNR at which outer levels start to run")
    group.add_argument(
        "--num_inner_steps",
        type=count,
        nargs="+",
        metavar="N",
        help="steps in which inner levels are generated first, alone",
    )
    group.add_argument("--max_sequence_length", type=count, metavar="N", help="longest prompt in tokens (default 128)")


def add_output(group: argparse._ArgumentGroup) -> None:
    """Add the flags of files."""
    group.add_argument(
        "--output_dir", type=Path, default=Path("drawn"), metavar="FOLDER", help="folder for the files (default drawn)"
    )
    group.add_argument(
        "--name",
        default="{index:03d}-{prompt}",
        metavar="PATTERN",
        help="name of a file, made of {index}, {prompt}, {seed} and {level} (default {index:03d}-{prompt})",
    )
    group.add_argument("--format", choices=FORMATS, help="(default: png for images, webp for clips)")
    group.add_argument("--all_levels", action="store_true", help="write every level, as NAME-LEVEL")
    group.add_argument(
        "--grid", type=Path, metavar="FILE", help="also write one labelled image of all, at every level"
    )
    group.add_argument("--fps", type=number, default=8.0, metavar="X", help="frames per second of clips (default 8)")
    group.add_argument("--overwrite", action="store_true", help="replace files that exist")


def add_machine(group: argparse._ArgumentGroup) -> None:
    """Add the flags of the model and the device."""
    group.add_argument("--batch_size", type=count, default=4, metavar="N", help="files generated together (default 4)")
    group.add_argument("--dtype", choices=DTYPES, default="float32", help="of the model (default float32)")
    group.add_argument("--device", metavar="NAME", help="cuda, mps or cpu, for example (default: an accelerator)")
    group.add_argument("--cpu_offload", action="store_true", help="keep only the component in use on the device")
    group.add_argument("--level_slicing", action="store_true", help="run outer levels one sample at a time")
    group.add_argument("--lora", metavar="FOLDER_OR_ID", help="LoRA to load")
    group.add_argument("--lora_scale", type=number, metavar="X", help="strength of the LoRA (default 1)")
    group.add_argument("--variant", metavar="NAME", help="variant of the weights, e.g. fp16")
    group.add_argument("--revision", metavar="NAME", help="of a Hub id")


def guider(text: str) -> Any:
    """Parse a guidance method: a name, or a JSON object of a name and settings."""
    if not text.lstrip().startswith("{"):
        return text
    try:
        return json.loads(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"is not JSON: {error}") from None
