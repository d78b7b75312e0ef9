# SPDX-License-Identifier: Apache-2.0
"""Flags and error handling of the conversion commands, which import nothing slow."""

import argparse
import sys
from collections.abc import Callable

from ..command_parsing import one_line

DTYPE_NAMES = ("bf16", "fp16", "fp32")


def add_folder_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the flags that describe the output folder."""
    parser.add_argument("--output_dir", metavar="FOLDER", required=True, help="folder to create; must not exist yet")
    parser.add_argument(
        "--text_encoder",
        metavar="FOLDER_OR_ID",
        help="folder or Hub id of the text encoder; writes a complete pipeline (without it: unet/ and scheduler/)",
    )
    parser.add_argument("--dtype", choices=DTYPE_NAMES, help="save in this dtype (default: the weights' own)")
    parser.add_argument(
        "--level", metavar="N", type=int, help="keep only this many levels, counted from the innermost"
    )


def run_command(work: Callable[[], None], output: str, program: str) -> int:
    """Run `work` and print what it wrote; print user errors in one line. Returns the exit code.

    Args:
        work: converts, or raises a ValueError or OSError.
        output: the place of the result, to print.
        program: the name of the command, to print before an error.
    """
    try:
        work()
    except (ValueError, OSError) as error:
        print(f"{program}: error: {one_line(error)}", file=sys.stderr)
        return 1
    print(f"Wrote {output}")
    return 0
