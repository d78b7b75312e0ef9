# SPDX-License-Identifier: Apache-2.0
"""The second part of a training command, after parsing: the recipe, and its description or the run."""

import argparse
import dataclasses
import logging
import sys
from collections.abc import Mapping, Sequence
from typing import Any

from ...command_parsing import one_line
from ...processes import OtherProcessEnded, is_main_launched, num_launched
from ..loop.engine import resolve_recipe, run_recipe
from ..loop.interruption import RunInterrupted
from ..state.checkpoints import WRITE_ERRORS
from .dry_run import describe_run
from .flags import recipe_and_options
from .kinds import CommandKind
from .messages import resume_command


def describe_or_run(
    kind: CommandKind, parser: argparse.ArgumentParser, given: Mapping[str, Any], arguments: Sequence[str]
) -> None:
    """Print what would be trained, or train it; user errors end with one line instead of a traceback.

    Args:
        kind: the training command.
        parser: ends the program if a flag is wrong.
        given: the flags from `parse_command`.
        arguments: the arguments of the command line.
    """
    recipe, options, is_dry_run = recipe_and_options(parser, given, kind)
    options = dataclasses.replace(options, resume_command=resume_command(arguments))
    is_main = is_main_launched()
    level = logging.INFO if is_main else logging.WARNING
    logging.basicConfig(level=level, format="%(asctime)s %(message)s", datefmt="%H:%M:%S")
    try:
        if is_dry_run:
            print(describe_run(resolve_recipe(recipe, options), options, num_launched()))
        else:
            run_recipe(recipe, options)
    except RunInterrupted as interruption:
        # The run was stopped by a signal and has saved a checkpoint, which counts as success.
        if is_main:
            print(interruption)
    except (ValueError, FloatingPointError, OtherProcessEnded, *WRITE_ERRORS) as error:
        sys.exit(f"{parser.prog}: error: {one_line(error)}")
