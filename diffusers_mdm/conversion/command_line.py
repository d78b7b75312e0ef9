# SPDX-License-Identifier: Apache-2.0
"""What the commands that convert have in common before anything slow is imported: their flags, and their errors."""

import argparse
import sys
from collections.abc import Callable

DTYPE_NAMES = ("bf16", "fp16", "fp32")


def add_folder_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the flags that say what the folder shall be."""
    parser.add_argument("--output_dir", required=True, help="folder to make; must not exist")
    parser.add_argument(
        "--text_encoder",
        help="folder or Hub id of the text encoder; makes a complete pipeline (without it: unet/ and scheduler/)",
    )
    parser.add_argument("--dtype", choices=DTYPE_NAMES, help="save in this dtype (default: the weights' own)")
    parser.add_argument("--level", type=int, help="keep only this many levels, counted from the innermost")


def run_command(work: Callable[[], None], output: str) -> int:
    """Do `work` and say what it wrote; an error that the user can mend becomes one line. Returns the exit code."""
    try:
        work()
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    print(f"Wrote {output}")
    return 0
