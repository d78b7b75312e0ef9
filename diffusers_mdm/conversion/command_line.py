# SPDX-License-Identifier: Apache-2.0
"""Flags and error handling of the conversion commands, which import nothing slow."""

import argparse
import sys
from collections.abc import Callable

DTYPE_NAMES = ("bf16", "fp16", "fp32")


def add_folder_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the flags that describe the output folder."""
    parser.add_argument("--output_dir", required=True, help="folder to create; must not exist yet")
    parser.add_argument(
        "--text_encoder",
        help="folder or Hub id of the text encoder; writes a complete pipeline (without it: unet/ and scheduler/)",
    )
    parser.add_argument("--dtype", choices=DTYPE_NAMES, help="save in this dtype (default: the weights' own)")
    parser.add_argument("--level", type=int, help="keep only this many levels, counted from the innermost")


def run_command(work: Callable[[], None], output: str) -> int:
    """Run `work` and print what it wrote; print user errors in one line. Returns the exit code."""
    try:
        work()
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    print(f"Wrote {output}")
    return 0
