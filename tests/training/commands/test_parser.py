# SPDX-License-Identifier: Apache-2.0
"""Words that no flag or no value can be: each is one line that teaches."""

import pytest

from diffusers_mdm.training.commands.flag_table import FLAGS
from diffusers_mdm.training.commands.inapplicable_flags import REASONS
from diffusers_mdm.training.commands.parser import build_parser, given_flags, metavar, parse_command

START = ["--output_dir", "out", "--pretrained_model_name_or_path", "model", "--dataset_name", "a"]


def parse(*words: str) -> dict:
    return given_flags(build_parser(), ["--output_dir", "out", *words])


def errors_of(capsys, *words: str) -> str:
    """What the command prints for a mistake: one line, and the exit status of argparse."""
    with pytest.raises(SystemExit) as ended:
        parse_command(words)
    assert ended.value.code == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1, error
    return error


@pytest.mark.parametrize("name", REASONS)
def test_flags_that_do_not_apply_say_why(name, capsys):
    error = errors_of(capsys, "--output_dir", "out", f"--{name}", "3")
    assert f"--{name} does not apply: {REASONS[name]}" in error


def test_what_is_always_so_may_be_asked_for():
    asked = parse("--set_grads_to_none", "--local_rank", "0")
    assert asked == parse()


def test_help_says_what_kind_of_value_a_flag_takes():
    shown = {name: metavar(flag) for name, flag in FLAGS.items() if flag.convert is not None}
    assert "X" not in shown.values()
    assert (
        shown["rank"],
        shown["learning_rate"],
        shown["recipe"],
        shown["output_dir"],
        shown["validation_prompts"],
    ) == (
        "N",
        "NUMBER",
        "FILE",
        "FOLDER",
        "TEXT",
    )


UNKNOWN = {
    "--lerning-rate": "did you mean --learning_rate?",
    "--learning-rate": "did you mean --learning_rate?",
    "--xyzzy": "--xyzzy is not a flag of this command; --help lists all flags.",
    "frog": "'frog' belongs to no flag",
}


@pytest.mark.parametrize("word", UNKNOWN)
def test_words_that_mean_nothing_are_explained(word, capsys):
    assert UNKNOWN[word] in errors_of(capsys, *START, word)


WRONG_VALUES = {
    ("--rank", "many"): "--rank: must be a whole number, got 'many'",
    ("--learning_rate", "nan"): "--learning_rate: must be a number",
    ("--seed", "-1"): "--seed: must be 0 to 4294967295",
    ("--num_validation_images", "-1"): "--num_validation_images: must not be negative",
}


@pytest.mark.parametrize("words", WRONG_VALUES, ids=lambda words: words[0])
def test_values_are_checked_as_they_are_read(words, capsys):
    assert WRONG_VALUES[words] in errors_of(capsys, *START, *words)
