# SPDX-License-Identifier: Apache-2.0
"""Exit codes and errors of `diffusers-mdm`."""

import subprocess
import sys
from pathlib import Path

import pytest

from diffusers_mdm import __version__
from diffusers_mdm.cli import main as entry
from diffusers_mdm.cli.command import Command, CommandGroup

ROOT = Path(__file__).parents[2]


class Raises:
    """A command that ends with an error."""

    def __init__(self, error: BaseException) -> None:
        self.error = error

    def run(self, program, arguments):
        raise self.error


def run(error: BaseException, monkeypatch) -> int:
    monkeypatch.setattr(entry, "wrong", Raises(error), raising=False)
    group = CommandGroup("Test.", (Command("wrong", "end with an error", "main:wrong"),))
    return entry.run_program("program", group, ["wrong", "--flag"])


@pytest.mark.parametrize(
    ("error", "code", "text"),
    [
        (ValueError("no\nfolder"), 1, "program wrong: error: no folder\n"),
        (FileNotFoundError("no file"), 1, "program wrong: error: no file\n"),
        (KeyboardInterrupt(), 130, "program wrong: interrupted\n"),
        (
            ModuleNotFoundError("gone", name="torchmetrics.image"),
            1,
            "program wrong: error: the package torchmetrics.image is missing; it comes with "
            'pip install "diffusers-mdm[evaluation]".\n',
        ),
    ],
)
def test_what_the_user_can_mend_is_one_line(error, code, text, monkeypatch, capsys):
    assert run(error, monkeypatch) == code
    assert capsys.readouterr().err == text


@pytest.mark.parametrize("error", [KeyError("ours"), ModuleNotFoundError("ours", name="diffusers_mdm.typing_mistake")])
def test_mistakes_of_the_package_are_not_hidden(error, monkeypatch):
    with pytest.raises(type(error)):
        run(error, monkeypatch)


def test_the_extras_exist():
    text = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    assert all(f"\n{extra} = [" in text for extra in set(entry.EXTRAS.values()))
    assert 'diffusers-mdm = "diffusers_mdm.cli.main:main"' in text


def test_the_package_is_a_program_too():
    done = subprocess.run(
        [sys.executable, "-m", "diffusers_mdm", "--version"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stdout) == (0, f"diffusers-mdm {__version__}\n"), done.stderr
