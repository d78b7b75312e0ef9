# SPDX-License-Identifier: Apache-2.0
"""The errors and flags that the conversion commands share (whole conversions: tests/commands/test_convert)."""

import argparse

import pytest

from diffusers_mdm.conversion.command_line import add_folder_arguments, run_command


@pytest.mark.parametrize("error", [ValueError("wrong"), FileNotFoundError("wrong")])
def test_what_the_user_can_mend_is_one_line(capsys, error):
    def fail():
        raise error

    assert run_command(fail, "out", "convert") == 1
    assert capsys.readouterr().err == "convert: error: wrong\n"
    assert run_command(lambda: None, "out", "convert") == 0
    assert capsys.readouterr().out == "Wrote out\n"


def test_errors_of_the_program_are_not_hidden():
    def fail():
        raise KeyError("a mistake of ours")

    with pytest.raises(KeyError):
        run_command(fail, "out", "convert")


def test_flags_of_a_folder():
    parser = argparse.ArgumentParser()
    add_folder_arguments(parser)
    args = parser.parse_args(["--output_dir", "out", "--dtype", "bf16", "--level", "2"])
    assert (args.output_dir, args.text_encoder, args.dtype, args.level) == ("out", None, "bf16", 2)
    with pytest.raises(SystemExit):
        parser.parse_args([])
