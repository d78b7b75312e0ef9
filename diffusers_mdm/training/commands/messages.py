# SPDX-License-Identifier: Apache-2.0
"""What a command says of itself: how to repeat it, and its errors in one line."""

import contextlib
import shlex
import sys
from collections.abc import Iterator, Sequence

import psutil  # type: ignore[import-untyped]

_SECRETS = ("--hub_token",)


def resume_command(arguments: Sequence[str]) -> str:
    """The line to type to start this program again, with its launcher, if it has one, and without secrets.

    Args:
        arguments: of the program, as in `sys.argv[1:]`; a launcher's own command line ends with the same.
    """
    command = sys.orig_argv
    with contextlib.suppress(psutil.Error):  # a parent that is gone, or another user's
        parent = psutil.Process().parent()
        above = [] if parent is None else parent.cmdline()
        if arguments and above[-len(arguments) :] == list(arguments):
            command = above
    return shlex.join(_without_secrets(command))


def _without_secrets(command: Sequence[str]) -> Iterator[str]:
    is_secret = False
    for word in command:
        name = word.split("=")[0]
        if not is_secret and name not in _SECRETS:
            yield word
        is_secret = word in _SECRETS


def one_line(message: object) -> str:
    """A message without line breaks, as errors of libraries have them."""
    return " ".join(str(message).split())
