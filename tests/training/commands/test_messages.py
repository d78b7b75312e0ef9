# SPDX-License-Identifier: Apache-2.0
import subprocess
import sys

import pytest

from diffusers_mdm.training.commands import messages as command_line
from diffusers_mdm.training.commands.messages import resume_command

# The module by its file: the package takes seconds to import.
PRINT = f"""
import runpy, sys
print(runpy.run_path({command_line.__file__!r})["resume_command"](sys.argv[1:]))
"""
LAUNCH = "import subprocess, sys; subprocess.run([sys.executable, *sys.argv[1:]], check=True)"


def printed(*command: str) -> str:
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return done.stdout.strip()


def test_it_is_what_was_typed(tmp_path):
    script = tmp_path / "my script.py"
    script.write_text(PRINT)
    typed = [sys.executable, str(script), "--recipe", "a b.yaml", "--output_dir", "out"]
    found = printed(*typed)
    assert found == f"{sys.executable} '{script}' --recipe 'a b.yaml' --output_dir out"


def test_a_launcher_belongs_to_it(tmp_path):
    script, launcher = tmp_path / "script.py", tmp_path / "launch.py"
    script.write_text(PRINT)
    launcher.write_text(LAUNCH)
    typed = [sys.executable, str(launcher), str(script), "--output_dir", "out"]
    assert printed(*typed) == " ".join(typed)


@pytest.mark.parametrize(
    "words",
    [
        ["--hub_token", "hf_secret"],
        ["--hub_token=hf_secret"],
        ["--resume_from_checkpoint", "none"],  # it would start over again
        ["--resume_from_checkpoint=checkpoint-2"],
    ],
)
def test_a_token_and_where_the_run_began_are_left_out(words, monkeypatch):
    monkeypatch.setattr(sys, "orig_argv", ["python", "train.py", "--seed", "1", *words, "--output_dir", "out"])
    assert resume_command([]) == "python train.py --seed 1 --output_dir out"
