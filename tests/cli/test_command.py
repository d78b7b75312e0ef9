# SPDX-License-Identifier: Apache-2.0
"""The words of a command line choose a command, and what chooses none is explained."""

import pytest

from diffusers_mdm.cli.command import Command, CommandGroup, walk
from diffusers_mdm.cli.registry import DIFFUSERS_MDM, PROGRAM

GROUP = CommandGroup(
    "Convert.",
    (Command("there", "convert", "convert:apple"), Command("back", "convert back", "convert:to_apple")),
    "1.2.3",
)


def run(*words: str) -> int:
    return GROUP.run("program", list(words))


def test_a_command_gets_the_words_after_its_name(capsys):
    with pytest.raises(SystemExit) as ended:
        run("back", "--model_path", "a")
    assert ended.value.code == 2
    assert capsys.readouterr().err.startswith("program back: error: ")


def test_without_a_command_the_help_is_shown(capsys):
    assert run() == 2
    printed = capsys.readouterr().out
    assert "convert back" in printed
    assert "--version" in printed


@pytest.mark.parametrize(
    ("word", "code", "text"),
    [
        ("--version", 0, "program 1.2.3"),
        ("--help", 0, "Convert."),
        ("bakc", 2, "program: error: 'bakc' is not a command; did you mean back? The commands are there, back."),
        ("--xyzzy", 2, "--xyzzy is not a flag of this command"),
    ],
)
def test_other_words(word, code, text, capsys):
    with pytest.raises(SystemExit) as ended:
        run(word)
    printed = capsys.readouterr()
    assert ended.value.code == code
    assert text in printed.out + printed.err


def test_every_command_has_a_parser_and_a_summary():
    programs = dict(walk(PROGRAM, DIFFUSERS_MDM))
    assert len(programs) > 8
    for name, program in programs.items():
        assert program.build_parser(name).prog == name
        if isinstance(program, CommandGroup):
            for command in program.commands:
                assert command.summary[0].islower()
                assert not command.summary.endswith(".")
