# SPDX-License-Identifier: Apache-2.0
"""`diffusers-mdm completion`: completion of commands and flags in the shell, by argcomplete.

The shell calls the program with the words typed so far in its environment. Only the parser of the command that is
being typed is built, so that an answer takes a fraction of a second.
"""

import argparse
import os
from collections.abc import Sequence
from typing import Any

from ..command_parsing import command_parser
from .command import CommandGroup, Program

# Set by the shell while it asks for completions: 1 + the number of words before the program's name.
START = "_ARGCOMPLETE"
SHELLS = ("bash", "zsh", "fish")
DESCRIPTION = """\
Print code that makes the shell complete commands, flags and their values. Put it where the shell reads it at its start
(needs pip install "diffusers-mdm[completion]"):

  {0} bash >> ~/.bashrc
  {0} zsh >> ~/.zshrc
  {0} fish > ~/.config/fish/completions/diffusers-mdm.fish
"""


def build_parser(program: str) -> argparse.ArgumentParser:
    """Return the parser."""
    parser = command_parser(program, DESCRIPTION.format(program))
    parser.add_argument("shell", choices=SHELLS, help="which shell the code is for")
    return parser


def run(program: str, arguments: Sequence[str]) -> int:
    """Print the code."""
    args = build_parser(program).parse_args(arguments)
    import argcomplete

    print(argcomplete.shellcode([program.split()[0]], shell=args.shell))
    return 0


def complete(program: str, group: CommandGroup, **settings: Any) -> None:
    """Answer the shell, and end the process.

    Args:
        program: the name of `group`.
        group: the commands.
        settings: further arguments of `argcomplete.autocomplete`.
    """
    import argcomplete

    typed = os.environ["COMP_LINE"], int(os.environ["COMP_POINT"])
    start = int(os.environ[START])
    words = argcomplete.split_line(*typed)[3][start:]
    name, depth = program, 0
    chosen: Program = group
    for word in words:
        command = chosen.find(word) if isinstance(chosen, CommandGroup) else None
        if command is None:
            break
        name, chosen, depth = f"{name} {word}", command.load(), depth + 1
    os.environ[START] = str(start + depth)  # the rest belongs to the command
    argcomplete.autocomplete(chosen.build_parser(name), **settings)
