# SPDX-License-Identifier: Apache-2.0
"""The command opens models from folders, and explains what it cannot open."""

import shutil

import pytest
import torch

from diffusers_mdm.cli import demo
from diffusers_mdm.cli.main import main
from diffusers_mdm.web.limits import Limits


def test_folders_are_opened_by_their_names(model_dir, tmp_path):
    other = tmp_path / "other"
    shutil.copytree(model_dir, other)
    models = demo.open_models([str(model_dir), f"{other}/"], Limits(), "bfloat16", "cpu")
    assert list(models) == [model_dir.name, "other"]
    assert models["other"].pipeline.unet.dtype == torch.bfloat16
    with pytest.raises(ValueError, match="Two models are called 'other'"):
        demo.open_models([str(other), str(other)], Limits(), device="cpu")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nobody/nothing"], "nobody/nothing is neither a pipeline folder"),
        (["model", "--max_steps", "10000000"], "limit `steps` is 10000000"),
    ],
)
def test_mistakes_are_one_line(arguments, message, capsys):
    assert main(["demo", *arguments]) == 1
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1


def test_limits_of_the_flags_are_fields():
    args = demo.build_parser("demo").parse_args(["model"])
    assert all(getattr(args, name) is None for name in demo.LIMITS)
    assert Limits(**{field: 7 for field, _ in demo.LIMITS.values()}).steps == 7
    for field, text in demo.LIMITS.values():
        assert f"(default {getattr(Limits(), field)})" in text
    assert args.host == "127.0.0.1"
