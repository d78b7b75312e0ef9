# SPDX-License-Identifier: Apache-2.0
"""Parsers and errors of all command lines. Imports nothing slow, so that `--help` and typing mistakes are answered at
once.
"""

import argparse
import contextlib
import difflib
import functools
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, NoReturn


def one_line(message: object) -> str:
    """Return a message without line breaks, which errors of libraries often contain."""
    return " ".join(str(message).split())


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """Return "did you mean ...? " for the known word that is nearest to `word`; "" if none is near."""
    near = difflib.get_close_matches(word, list(known), 1)
    return f"did you mean {near[0]}? " if near else ""


@contextlib.contextmanager
def mistakes_in_one_line(program: str | None = None) -> Iterator[None]:
    """End the program with one line instead of a traceback if a user error is raised inside the block.

    Args:
        program: name to print before the error; by default that of the script.
    """
    try:
        yield
    except (ValueError, OSError) as error:
        sys.exit(f"{program or Path(sys.argv[0]).name}: error: {one_line(error)}")


class OneLineParser(argparse.ArgumentParser):
    """A parser that reports errors in one line, without the usage."""

    def error(self, message: str) -> NoReturn:
        """Print the error and end the program."""
        self.exit(2, f"{self.prog}: error: {one_line(message)}\n")

    def parse_args(self, args: Any = None, namespace: Any = None) -> Any:
        """Parse as argparse does; for an unknown flag, suggest the one that may be meant."""
        parsed, unknown = self.parse_known_args(args, namespace)
        if unknown:
            self.error(self._explain(unknown[0]))
        return parsed

    def _explain(self, word: str) -> str:
        name = word.split("=")[0]
        if not name.startswith("-"):
            return f"{name!r} belongs to no flag: put text with spaces in quotes, and only one value after a flag."
        near = difflib.get_close_matches(name.replace("-", "_"), self._plain_names(), 1)
        guess = f"did you mean {self._plain_names()[near[0]]}? " if near else ""
        return f"{name} is not a flag of this command; {guess}--help lists all flags."

    def _plain_names(self) -> dict[str, str]:
        """Return the flags by their names with - replaced by _."""
        return {flag.replace("-", "_"): flag for flag in self._option_string_actions}


def command_parser(
    program: str | None, description: str, *, max_help_position: int = 24, **settings: Any
) -> OneLineParser:
    """Return the parser of a command: its description keeps its lines, and its flags cannot be abbreviated.

    Args:
        program: what users type to call the command, for its messages; None for the name of the script.
        description: what its help begins with.
        max_help_position: column in which the explanations of flags begin at the latest.
        settings: other arguments of `argparse.ArgumentParser`.
    """
    formatter = functools.partial(argparse.RawDescriptionHelpFormatter, max_help_position=max_help_position)
    return OneLineParser(
        prog=program, description=description, formatter_class=formatter, allow_abbrev=False, **settings
    )
