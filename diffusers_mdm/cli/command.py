# SPDX-License-Identifier: Apache-2.0
"""What a command and a group of commands are, and how the words of the command line choose one."""

from __future__ import annotations

import argparse
import importlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

from ..command_parsing import command_parser, did_you_mean

USAGE_ERROR = 2  # exit code of argparse for typing mistakes


class Program(Protocol):
    """What a command runs: a module, or an object in one, with these functions."""

    def build_parser(self, program: str) -> argparse.ArgumentParser:
        """Return the parser of its arguments; must be fast, so it imports nothing slow.

        Args:
            program: what users type to call it, for its messages.
        """

    def run(self, program: str, arguments: Sequence[str]) -> int:
        """Parse the arguments and do the work; return the exit code.

        A user error is a ValueError or OSError, which the caller prints in one line.
        """


@dataclass(frozen=True)
class Command:
    """One command of a group.

    Attributes:
        name: the word that calls it.
        summary: what it does, for the help of its group; starts with a verb, and has no period.
        target: its `Program`: a module of this package, relative to this folder, or "module:name" of an object in one.
    """

    name: str
    summary: str
    target: str

    def load(self) -> Program:
        """Import and return its program."""
        module, _, name = self.target.partition(":")
        loaded = importlib.import_module(f".{module}", __package__)
        return getattr(loaded, name) if name else loaded


@dataclass(frozen=True)
class CommandGroup:
    """A program that consists of commands, such as `diffusers-mdm` itself.

    Attributes:
        description: what the commands have in common, and examples.
        commands: its commands, in the order of its help.
        version: what `--version` prints; None for no such flag.
    """

    description: str
    commands: tuple[Command, ...]
    version: str | None = None

    def build_parser(self, program: str) -> argparse.ArgumentParser:
        """Return the parser of the group itself, which only knows the names of its commands."""
        parser = command_parser(
            program,
            self.description,
            usage=f"{program} COMMAND [arguments]\n       {program} COMMAND --help",
            max_help_position=28,
        )
        if self.version is not None:
            parser.add_argument("--version", action="version", version=f"{program} {self.version}")
        names = parser.add_subparsers(title="commands", metavar="COMMAND", dest="command")
        for command in self.commands:
            names.add_parser(command.name, help=command.summary, add_help=False)
        return parser

    def run(self, program: str, arguments: Sequence[str]) -> int:
        """Run the command that the first argument names; without one, print the help and return 2."""
        if arguments and (command := self.find(arguments[0])) is not None:
            return command.load().run(f"{program} {command.name}", arguments[1:])
        parser = self.build_parser(program)
        if arguments and not arguments[0].startswith("-"):
            guess = did_you_mean(arguments[0], (command.name for command in self.commands))
            names = ", ".join(command.name for command in self.commands)
            parser.error(f"{arguments[0]!r} is not a command; {guess}The commands are {names}.")
        parser.parse_args(arguments)
        parser.print_help()
        return USAGE_ERROR

    def find(self, name: str) -> Command | None:
        """Return the command with this name; None if there is none."""
        return next((command for command in self.commands if command.name == name), None)


def walk(program: str, group: CommandGroup) -> Iterator[tuple[str, Program]]:
    """Yield the name and the program of a group and of all commands in it, in the order of the help."""
    yield program, group
    for command in group.commands:
        loaded, name = command.load(), f"{program} {command.name}"
        if isinstance(loaded, CommandGroup):
            yield from walk(name, loaded)
        else:
            yield name, loaded
