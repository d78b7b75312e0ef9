# SPDX-License-Identifier: Apache-2.0
"""What the commands that make a diffusers folder have in common: their flags, their order of work, their errors."""

import argparse
import sys
from collections.abc import Callable
from typing import Any

from .apple_mdm import ConvertedCheckpoint
from .write_pipeline import DTYPES, assemble_pipeline, check_output_is_new, write_model


def add_folder_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the flags that say what the folder shall be."""
    parser.add_argument("--output_dir", required=True, help="folder to make; must not exist")
    parser.add_argument(
        "--text_encoder",
        help="folder or Hub id of the text encoder; makes a complete pipeline (without it: unet/ and scheduler/)",
    )
    parser.add_argument("--dtype", choices=sorted(DTYPES), help="save in this dtype (default: the weights' own)")
    parser.add_argument("--level", type=int, help="keep only this many levels, counted from the innermost")


def convert_to_folder(
    args: argparse.Namespace,
    read: Callable[[argparse.Namespace], ConvertedCheckpoint],
    pipeline_class: type,
    unused_file: str | None = None,
) -> None:
    """Read a foreign checkpoint and write the folder that `args` ask for, or nothing.

    Args:
        args: the flags of `add_folder_arguments`, and those that `read` takes.
        read: converts in memory.
        pipeline_class: what a folder with a text encoder is a pipeline of.
        unused_file: where, beside the weights, the tensors go that the foreign code never runs; None leaves them out.

    Raises:
        ValueError: the folder exists, or something does not fit.
        OSError: a file is missing, or cannot be read or written.
    """
    check_output_is_new(args.output_dir)  # before the long work
    converted = read(args)
    unet = converted.unet.to(DTYPES[args.dtype]) if args.dtype else converted.unet

    def make_pipeline(unet: Any, scheduler: Any) -> Any:
        return assemble_pipeline(pipeline_class, unet, scheduler, args.text_encoder, unet.dtype)

    write_model(
        args.output_dir,
        unet,
        converted.scheduler,
        {unused_file: converted.unused} if unused_file else None,
        make_pipeline if args.text_encoder else None,
    )


def run_command(work: Callable[[], None], output: str) -> int:
    """Do `work` and say what it wrote; an error that the user can mend becomes one line. Returns the exit code."""
    try:
        work()
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    print(f"Wrote {output}")
    return 0
