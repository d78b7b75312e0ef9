# SPDX-License-Identifier: Apache-2.0
"""Running a training command: its words first, and what takes seconds to import only when they are right."""

import sys
from collections.abc import Sequence

from .kinds import CLASS_CONDITIONAL, TEXT_TO_IMAGE, TEXT_TO_VIDEO, CommandKind
from .parser import parse_command

__all__ = ["CLASS_CONDITIONAL", "TEXT_TO_IMAGE", "TEXT_TO_VIDEO", "run_command"]


def run_command(kind: CommandKind = TEXT_TO_IMAGE, arguments: Sequence[str] | None = None) -> None:
    """Parse, then print or run; what the user can mend ends with one line instead of a traceback.

    Args:
        kind: which command it is.
        arguments: its words; by default those of this program.
    """
    arguments = sys.argv[1:] if arguments is None else arguments
    parser, given = parse_command(arguments, kind)
    from ... import public_names  # noqa: F401  all of the package, which diffusers then knows
    from .training_run import describe_or_run

    describe_or_run(kind, parser, given, arguments)
