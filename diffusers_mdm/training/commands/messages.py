# SPDX-License-Identifier: Apache-2.0
"""What a command says of itself: how to repeat it, and its errors in one line."""

import contextlib
import shlex
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import psutil  # type: ignore[import-untyped]

# What a command that goes on must not say: secrets, and where the run that was stopped began.
_LEFT_OUT = ("--hub_token", "--resume_from_checkpoint")


def resume_command(arguments: Sequence[str]) -> str:
    """The line to type to go on with this program's run, with its launcher, if it has one, and without secrets.

    It resumes from the newest checkpoint, whatever the program was told to start from.

    Args:
        arguments: of the program, as in `sys.argv[1:]`; a launcher's own command line ends with the same.
    """
    command = sys.orig_argv
    with contextlib.suppress(psutil.Error):  # a parent that is gone, or another user's
        parent = psutil.Process().parent()
        above = [] if parent is None else parent.cmdline()
        if arguments and above[-len(arguments) :] == list(arguments):
            command = above
    return shlex.join(_without_what_is_left_out(command))


def _without_what_is_left_out(command: Sequence[str]) -> Iterator[str]:
    is_value = False
    for word in command:
        name = word.split("=")[0]
        if not is_value and name not in _LEFT_OUT:
            yield word
        is_value = word in _LEFT_OUT


def one_line(message: object) -> str:
    """A message without line breaks, as errors of libraries have them."""
    return " ".join(str(message).split())


@contextlib.contextmanager
def mistakes_in_one_line() -> Iterator[None]:
    """Inside the block, end the program with one line for what the user can mend, in place of a traceback."""
    try:
        yield
    except (ValueError, OSError) as error:
        sys.exit(f"{Path(sys.argv[0]).name}: error: {one_line(error)}")
