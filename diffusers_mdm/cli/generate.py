# SPDX-License-Identifier: Apache-2.0
"""`diffusers-mdm generate`: images or clips for prompts or classes, as files."""

import argparse
import functools
import json
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ..command_parsing import OneLineParser
from ..training.commands.flag_values import count, number, seed

DESCRIPTION = """\
Generate images or clips with a saved model: one file each.

  {0} my-model --prompts "a red fox" "a blue bird" --output_dir drawn
  {0} my-model --prompts_file prompts.txt --batch_size 8 --all_levels --name "{{seed}}-{{level}}"
  {0} my-model --prompts "a red fox" --height 16 --solver dpmsolver++ --num_inference_steps 10
  {0} my-classes --classes hearts "cat faces" 17 --num_images 4 --grid hearts.png
  {0} my-video-model --prompts "a red heart" --format mp4

Steps and guidance have the defaults of the model's folder. A file depends only on its prompt, seed and settings, not
on the other files; PNG files contain these settings as text.
"""
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


def build_parser(program: str) -> argparse.ArgumentParser:
    """Return the parser."""
    parser = OneLineParser(
        prog=program,
        description=DESCRIPTION.format(program),
        formatter_class=functools.partial(argparse.RawDescriptionHelpFormatter, max_help_position=32),
        allow_abbrev=False,
    )
    parser.add_argument("model", metavar="MODEL", help="pipeline folder or Hub id")
    _add_contents(parser.add_argument_group("what to generate"))
    _add_drawing(parser.add_argument_group("how to generate it"))
    _add_output(parser.add_argument_group("output"))
    _add_machine(parser.add_argument_group("model and machine"))
    return parser


def _add_contents(group: argparse._ArgumentGroup) -> None:
    group.add_argument("--prompts", nargs="+", metavar="TEXT", help="one file per text (and image of it)")
    group.add_argument("--prompts_file", type=Path, metavar="FILE", help="text file with one prompt per line")
    group.add_argument("--classes", nargs="+", metavar="CLASS", help="names or numbers, for models with classes")
    group.add_argument("--negative_prompt", metavar="TEXT", help="what guidance leads away from, for all prompts")
    group.add_argument("--num_images", type=count, default=1, metavar="N", help="per prompt or class (default 1)")
    group.add_argument("--seed", type=seed, default=0, metavar="N", help="file i has the seed SEED + i (default 0)")


def _add_drawing(group: argparse._ArgumentGroup) -> None:
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


def _add_output(group: argparse._ArgumentGroup) -> None:
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


def _add_machine(group: argparse._ArgumentGroup) -> None:
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


def run(program: str, arguments: Sequence[str]) -> int:
    """Generate the files that the arguments describe."""
    parser = build_parser(program)
    args = parser.parse_args(arguments)
    given = [name for name in ("prompts", "prompts_file", "classes") if getattr(args, name) is not None]
    if len(given) > 1 and "classes" not in given:
        parser.error("--prompts and --prompts_file are both prompts; pass one of them.")
    if args.lora_scale is not None and args.lora is None:
        parser.error("--lora_scale needs --lora.")
    from .drawing import draw_all, open_drawing

    start = time.perf_counter()
    drawing = open_drawing(args)
    loaded = time.perf_counter()
    written = draw_all(drawing, args)
    print(f"loaded in {loaded - start:.1f} s, generated in {time.perf_counter() - loaded:.1f} s")
    for path in written if len(written) <= 10 else [*written[:3], Path("…"), written[-1]]:
        print(f"Wrote {path}" if path != Path("…") else "…")
    return 0
