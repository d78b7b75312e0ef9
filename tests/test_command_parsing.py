# SPDX-License-Identifier: Apache-2.0
"""Errors of command lines: one line each, that says what may be meant."""

import pytest

from diffusers_mdm.command_parsing import OneLineParser, command_parser, did_you_mean, mistakes_in_one_line, one_line


def test_messages_have_one_line():
    assert one_line(ValueError("first\n\n  second\tthird ")) == "first second third"


def test_user_errors_end_a_program_with_its_name():
    with pytest.raises(SystemExit, match=r"^draw: error: two lines$"), mistakes_in_one_line("draw"):
        raise ValueError("two\nlines")
    with pytest.raises(KeyError), mistakes_in_one_line("draw"):
        raise KeyError("a mistake of ours")


def test_the_nearest_word_is_suggested():
    assert did_you_mean("trian", ["train", "evaluate"]) == "did you mean train? "
    assert did_you_mean("xyzzy", ["train", "evaluate"]) == ""


@pytest.mark.parametrize(
    ("word", "message"),
    [
        ("--output-dri", "did you mean --output_dir?"),
        ("--xyzzy=3", "--xyzzy is not a flag of this command; --help lists all flags."),
        ("fox", "'fox' belongs to no flag"),
    ],
)
def test_unknown_words_are_one_line(word, message, capsys):
    parser = OneLineParser(prog="draw")
    parser.add_argument("--output_dir")
    with pytest.raises(SystemExit) as ended:
        parser.parse_args([word])
    error = capsys.readouterr().err
    assert ended.value.code == 2
    assert error.startswith("draw: error: ")
    assert error.count("\n") == 1
    assert message in error


def test_parsers_of_commands_keep_lines_and_take_whole_flags_only(capsys):
    parser = command_parser("draw", "Draw.\n\n  draw --steps 3", max_help_position=20)
    parser.add_argument("--steps", help="how many")
    assert "\n  draw --steps 3\n" in parser.format_help()
    with pytest.raises(SystemExit):
        parser.parse_args(["--ste", "3"])
    assert "did you mean --steps?" in capsys.readouterr().err
