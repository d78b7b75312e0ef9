# SPDX-License-Identifier: Apache-2.0
"""`diffusers-mdm generate`: images or clips for prompts or classes, as files."""

import argparse
import time
from collections.abc import Sequence
from pathlib import Path

from ..command_parsing import command_parser
from .generating import generate_flags as flags

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


def build_parser(program: str) -> argparse.ArgumentParser:
    """Return the parser."""
    parser = command_parser(program, DESCRIPTION.format(program), max_help_position=32)
    parser.add_argument("model", metavar="MODEL", help="pipeline folder or Hub id")
    flags.add_contents(parser.add_argument_group("what to generate"))
    flags.add_drawing(parser.add_argument_group("how to generate it"))
    flags.add_output(parser.add_argument_group("output"))
    flags.add_machine(parser.add_argument_group("model and machine"))
    return parser


def run(program: str, arguments: Sequence[str]) -> int:
    """Generate the files that the arguments describe."""
    parser = build_parser(program)
    args = parser.parse_args(arguments)
    given = [name for name in ("prompts", "prompts_file", "classes") if getattr(args, name) is not None]
    if len(given) > 1 and "classes" not in given:
        parser.error("--prompts and --prompts_file are both prompts; pass one of them.")
    if args.lora_scale is not None and args.lora is None:
        parser.error("--lora_scale needs --lora.")
    from .generating.drawing import draw_all, open_drawing

    start = time.perf_counter()
    drawing = open_drawing(args)
    loaded = time.perf_counter()
    written = draw_all(drawing, args)
    print(f"loaded in {loaded - start:.1f} s, generated in {time.perf_counter() - loaded:.1f} s")
    for path in written if len(written) <= 10 else [*written[:3], Path("…"), written[-1]]:
        print(f"Wrote {path}" if path != Path("…") else "…")
    return 0
