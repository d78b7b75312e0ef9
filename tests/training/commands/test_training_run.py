# SPDX-License-Identifier: Apache-2.0
"""What the user can mend ends a training command with one line, before anything is written."""

import pytest

from diffusers_mdm.training.commands.kinds import TEXT_TO_IMAGE, TEXT_TO_VIDEO, CommandKind
from diffusers_mdm.training.commands.parser import parse_command
from diffusers_mdm.training.commands.training_run import describe_or_run
from tests.training.tiny_run import RECIPES


def run(*words: object, kind: CommandKind = TEXT_TO_IMAGE) -> None:
    arguments = ["--recipe", str(RECIPES / "tiny.yaml"), *map(str, words)]
    parser, given = parse_command(arguments, kind)
    describe_or_run(kind, parser, given, arguments)


@pytest.mark.parametrize("words", [("--train_data_dir", "nothing-here"), ("--resume_from_checkpoint", "checkpoint-7")])
def test_what_the_user_can_mend_is_one_line(words, tmp_path):
    with pytest.raises(SystemExit) as ended:
        run("--output_dir", tmp_path / "out", *words)
    assert ": error: " in ended.value.code
    assert "\n" not in ended.value.code
    assert words[1] in ended.value.code
    assert not (tmp_path / "out" / "recipe.json").exists()


def test_a_recipe_of_another_command_is_refused_before_anything_is_read(tmp_path, capsys):
    with pytest.raises(SystemExit):
        run("--output_dir", tmp_path / "out", kind=TEXT_TO_VIDEO)
    assert "train_text_to_image_mdm.py" in capsys.readouterr().err
