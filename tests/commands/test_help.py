# SPDX-License-Identifier: Apache-2.0
"""Every command answers `--help` and typing mistakes before anything slow is imported."""

import ast
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
SLOW = {"torch", "diffusers", "transformers", "accelerate", "datasets", "peft", "numpy", "matplotlib", "tokenizers"}
# One interpreter runs all commands, as `python SCRIPT WORDS` would, and lists what has been imported.
PROGRAM = """
import contextlib, io, runpy, sys

word, *scripts = sys.argv[1:]
for script in scripts:
    printed = io.StringIO()
    sys.argv = [script, word]
    with contextlib.redirect_stdout(printed), contextlib.redirect_stderr(printed), contextlib.suppress(SystemExit):
        runpy.run_path(script, run_name="__main__")
        print("no exit")
    print(repr(printed.getvalue()))
print(*sorted({name.split(".")[0] for name in sys.modules}))
"""

# The same for all commands of `diffusers-mdm`, as its script in a folder of programs would call it.
INSTALLED = """
import contextlib, io, sys

sys.argv = ["bin/diffusers-mdm"]
from diffusers_mdm.cli.command import walk
from diffusers_mdm.cli.main import main
from diffusers_mdm.cli.registry import DIFFUSERS_MDM, PROGRAM

for name, _ in walk(PROGRAM, DIFFUSERS_MDM):
    for word in ("--help", "--outptu_dir"):
        printed, code = io.StringIO(), None
        with contextlib.redirect_stdout(printed), contextlib.redirect_stderr(printed):
            try:
                code = main([*name.split()[1:], word])
            except SystemExit as ended:
                code = ended.code
        print(repr((name, word, code, printed.getvalue())))
print(*sorted({name.split(".")[0] for name in sys.modules}))
"""


def scripts() -> list[str]:
    return sorted(str(path) for folder in ("training", "conversion") for path in (ROOT / folder).glob("*.py"))


def run_all(word: str) -> tuple[list[str], set[str]]:
    """What each command prints when it is given one word, and the modules imported by all of them together."""
    command = [sys.executable, "-c", PROGRAM, word, *scripts()]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    *printed, modules = done.stdout.splitlines()
    return printed, set(modules.split())


def test_help_imports_nothing_slow():
    printed, modules = run_all("--help")
    assert len(printed) == len(scripts())
    assert all("usage:" in text and "--help" in text and "no exit" not in text for text in printed)
    assert not modules & SLOW
    assert not any("Traceback" in text for text in printed)


def test_a_typing_mistake_is_told_before_anything_slow_is_imported():
    printed, modules = run_all("--outptu_dir")
    assert all("error" in text and "no exit" not in text for text in printed)
    assert not modules & SLOW


def test_the_installed_program_answers_before_anything_slow_is_imported():
    done = subprocess.run([sys.executable, "-c", INSTALLED], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    *answers, modules = done.stdout.splitlines()
    assert not set(modules.split()) & SLOW
    found = [ast.literal_eval(answer) for answer in answers]
    names = {name for name, *_ in found}
    assert {"diffusers-mdm", "diffusers-mdm train text-to-image", "diffusers-mdm convert apple"} <= names
    for name, word, code, text in found:
        if word == "--help":
            assert code == 0, text
            assert text.startswith("usage: ")
            assert f"\n  {name} " in text.partition("\n\n")[2], f"the help of {name} has no example"
        else:
            assert (code, text.count("\n")) == (2, 1), text
            assert text.startswith(f"{name}: error: ")
