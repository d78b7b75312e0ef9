# SPDX-License-Identifier: Apache-2.0
"""Running a training command: parsing first, and slow imports only if the arguments are right."""

import sys
from collections.abc import Sequence

from .kinds import CLASS_CONDITIONAL, TEXT_TO_IMAGE, TEXT_TO_VIDEO, UNCONDITIONAL, CommandKind
from .parser import parse_command

__all__ = ["CLASS_CONDITIONAL", "TEXT_TO_IMAGE", "TEXT_TO_VIDEO", "UNCONDITIONAL", "run_command"]


def run_command(
    kind: CommandKind = TEXT_TO_IMAGE, arguments: Sequence[str] | None = None, program: str | None = None
) -> None:
    """Parse the arguments, then describe or run the training; user errors end with one line instead of a traceback.

    Args:
        kind: the training command.
        arguments: the arguments of the command line; by default those of this program.
        program: the command's name in messages; by default that of the script.
    """
    arguments = sys.argv[1:] if arguments is None else arguments
    parser, given = parse_command(arguments, kind, program)
    from ... import public_names  # noqa: F401  all of the package, which diffusers then knows
    from .training_run import describe_or_run

    describe_or_run(kind, parser, given, arguments)
