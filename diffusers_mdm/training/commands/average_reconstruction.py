# SPDX-License-Identifier: Apache-2.0
"""`training/reconstruct_ema.py`, `diffusers-mdm reconstruct-ema`: averages of another width, after training."""

import argparse
import logging
from collections.abc import Sequence
from pathlib import Path

from ...command_parsing import command_parser
from .flag_table import SAVE_PRECISIONS
from .flag_values import count, number

DESCRIPTION = """\
Save the pipeline of a finished run with averaged weights (EMA) of another width, from the snapshots that it wrote.

  {0} --run_dir my-model --sigma_rel 0.15 --output_dir my-model-0.15

The run has to be trained with --post_hoc_ema. The width is relative to the length of training (sigma_rel of Karras et
al. 2024): try some from 0.03 to 0.25, and keep the one that scores best.
"""


def build_parser(program: str) -> argparse.ArgumentParser:
    """Return the parser."""
    parser = command_parser(program, DESCRIPTION.format(program))
    parser.add_argument("--run_dir", type=Path, required=True, metavar="FOLDER", help="output folder of the run")
    parser.add_argument("--sigma_rel", type=number, required=True, metavar="NUMBER", help="width of the average")
    parser.add_argument("--output_dir", type=Path, required=True, metavar="FOLDER", help="new folder for the result")
    parser.add_argument("--step", type=count, metavar="N", help="at the snapshot of step N (default: the last)")
    parser.add_argument("--save_dtype", choices=SAVE_PRECISIONS, default="fp32", help="dtype of the result")
    return parser


def run(program: str, arguments: Sequence[str]) -> int:
    """Save the average that the arguments describe.

    Raises:
        ValueError: the run has no result or no such snapshot, or the width is not possible.
    """
    args = build_parser(program).parse_args(arguments)
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    from ..reports.average_card import write_average_card
    from ..state.post_hoc.reconstruction import save_reconstructed

    average = save_reconstructed(args.run_dir, args.sigma_rel, args.output_dir, args.step, args.save_dtype)
    write_average_card(args.run_dir, args.output_dir, average, args.sigma_rel, args.save_dtype)
    logging.getLogger(__name__).info(
        "Saved %s: average of width %g at step %d, from %d snapshots, whose profile differs by %.2g %% from the "
        "wanted one.",
        args.output_dir,
        args.sigma_rel,
        average.step,
        average.num_snapshots,
        100 * average.error,
    )
    return 0
