# SPDX-License-Identifier: Apache-2.0
"""Messages of the commands: the command that resumes a run, and errors in one line."""

import contextlib
import shlex
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import psutil  # type: ignore[import-untyped]

# Flags that are left out of the command that resumes: secrets, and the checkpoint that the run started from.
_LEFT_OUT = ("--hub_token", "--resume_from_checkpoint")


def resume_command(arguments: Sequence[str]) -> str:
    """Return the command that resumes this program's run, with its launcher if it has one, and without secrets.

    It resumes from the newest checkpoint, whatever this run was started from.

    Args:
        arguments: arguments of the program, as in `sys.argv[1:]`; a launcher's command line ends with the same ones.
    """
    command = sys.orig_argv
    with contextlib.suppress(psutil.Error):  # the parent has ended, or belongs to another user
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
    """Return a message without line breaks, which errors of libraries often contain."""
    return " ".join(str(message).split())


@contextlib.contextmanager
def mistakes_in_one_line() -> Iterator[None]:
    """End the program with one line instead of a traceback if a user error is raised inside the block."""
    try:
        yield
    except (ValueError, OSError) as error:
        sys.exit(f"{Path(sys.argv[0]).name}: error: {one_line(error)}")
