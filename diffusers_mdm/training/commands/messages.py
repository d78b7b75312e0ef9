# SPDX-License-Identifier: Apache-2.0
"""The command that resumes a run, for messages and the model card."""

import contextlib
import shlex
import sys
from collections.abc import Iterator, Sequence

# Flags that are left out of the command that resumes: secrets, and the checkpoint that the run started from.
_LEFT_OUT = ("--hub_token", "--resume_from_checkpoint")


def resume_command(arguments: Sequence[str]) -> str:
    """Return the command that resumes this program's run, with its launcher if it has one, and without secrets.

    It resumes from the newest checkpoint, whatever this run was started from.

    Args:
        arguments: arguments of the program, as in `sys.argv[1:]`; a launcher's command line ends with the same ones.
    """
    import psutil  # type: ignore[import-untyped]  # comes with the extra "training", which parsing does not need

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
