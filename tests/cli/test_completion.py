# SPDX-License-Identifier: Apache-2.0
"""Completion: code for three shells, and the words that the shell is offered."""

import ast
import os
import shutil
import subprocess
import sys

import pytest

from diffusers_mdm.cli.completion import SHELLS, START
from diffusers_mdm.cli.main import main
from diffusers_mdm.cli.registry import DIFFUSERS_MDM

pytest.importorskip("argcomplete")

# argcomplete closes files that belong to the test runner, so it runs in a process of its own, which answers all lines.
PROGRAM = """
import io, os, sys

sys.argv = ["bin/diffusers-mdm"]
from diffusers_mdm.cli.completion import START, complete
from diffusers_mdm.cli.registry import DIFFUSERS_MDM, PROGRAM

def end(code):
    raise RuntimeError

for line in LINES:
    os.environ.update({START: "1", "COMP_LINE": line, "COMP_POINT": str(len(line)), "_ARGCOMPLETE_IFS": "|"})
    answer = io.StringIO()
    try:
        complete(PROGRAM, DIFFUSERS_MDM, exit_method=end, output_stream=answer)
    except RuntimeError:
        print(repr([word.strip() for word in answer.getvalue().split("|")]))
assert "torch" not in sys.modules
"""
OFFERED = {
    "diffusers-mdm ge": {"generate"},
    "diffusers-mdm train text": {"text-to-image", "text-to-video"},
    "diffusers-mdm train text-to-image --recip": {"--recipe"},
    "diffusers-mdm generate model --dtype b": {"bfloat16"},
    "diffusers-mdm fetch flickr": {"flickr64", "flickr256", "flickr1024"},
    "diffusers-mdm evaluate score --metrics ki": {"kid"},
}


def test_what_is_offered():
    lines = [*OFFERED, "diffusers-mdm "]
    program = PROGRAM.replace("LINES", repr(lines))
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    *answers, everything = [set(ast.literal_eval(line)) for line in done.stdout.splitlines()]
    assert dict(zip(OFFERED, answers, strict=True)) == OFFERED
    assert {command.name for command in DIFFUSERS_MDM.commands} <= everything


@pytest.mark.parametrize("shell", SHELLS)
def test_the_code_is_accepted_by_the_shell(shell, capsys):
    assert main(["completion", shell]) == 0
    code = capsys.readouterr().out
    assert "diffusers-mdm" in code
    if shutil.which(shell):
        subprocess.run([shell, "-n"], input=code, text=True, check=True)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="shells of POSIX systems")
def test_the_program_answers_the_shell(tmp_path):
    line, answer = "diffusers-mdm conv", tmp_path / "answer"
    environment = {**os.environ, START: "1", "COMP_LINE": line, "COMP_POINT": str(len(line)), "_ARGCOMPLETE_IFS": "\n"}
    environment["_ARGCOMPLETE_STDOUT_FILENAME"] = str(answer)
    subprocess.run([sys.executable, "-m", "diffusers_mdm"], env=environment, check=True)
    assert answer.read_text().strip() == "convert"
