# SPDX-License-Identifier: Apache-2.0
"""Reading a checkpoint and writing the folder that was asked for (whole conversions: tests/commands/test_convert)."""

import argparse

import pytest

from diffusers_mdm.conversion.command_line import add_folder_arguments
from diffusers_mdm.conversion.folder_command import convert_to_folder


def test_nothing_is_read_if_the_folder_exists(tmp_path):
    parser = argparse.ArgumentParser()
    add_folder_arguments(parser)
    args = parser.parse_args(["--output_dir", str(tmp_path)])

    def read(args):
        raise AssertionError("this takes minutes for a large checkpoint")

    with pytest.raises(ValueError, match="exists already"):
        convert_to_folder(args, read, object)
