# SPDX-License-Identifier: Apache-2.0
"""The verbs of `diffusers-mdm evaluate`, and what each of them runs."""

from __future__ import annotations

import argparse
from collections.abc import Callable

from .measure import draw_captions, evaluate_model, score_drawings, write_reference
from .sheets import write_samples, write_sheet

VERBS: dict[str, Callable[[argparse.Namespace], None]] = {
    "all": evaluate_model,
    "reference": write_reference,
    "generate": draw_captions,
    "score": score_drawings,
    "samples": write_samples,
    "sheet": write_sheet,
}


def run_verb(args: argparse.Namespace) -> None:
    """Run the verb of the command line.

    Raises:
        ValueError: a flag, the data or a folder is wrong; the message says what to do.
    """
    VERBS[args.verb](args)
