# SPDX-License-Identifier: Apache-2.0
"""The examples of a documentation page: its fenced blocks, and the commands that stand in its text."""

import re
import shlex
from dataclasses import dataclass
from pathlib import Path

# What may stand after the language of a block, and is seen by whoever reads the page's source.
MARKS = {
    "long": "runs for minutes or hours; tests run commands with --dry_run, and Python among the slow tests",
    "network": "fetches or sends something; tests check its programs, scripts, flags and files",
    "accelerator": "needs a GPU; tests check what is named in it",
    "optional": "needs a package that nothing else here needs; tests run it where that is installed",
    "part": "a part of a recipe; tests check its fields",
}
PROGRAMS = ("diffusers-mdm", "python", "accelerate", "make", "pip", "git", "hf", "tensorboard", "pre-commit")
PROGRAMS += ("curl", "img2dataset", "video2dataset")  # of others, to download data sets


@dataclass(frozen=True)
class Block:
    """A fenced block: language, marks, contents, and the line of the page on which it begins."""

    language: str
    marks: frozenset[str]
    text: str
    line: int

    @property
    def name(self) -> str:
        """How test output calls it."""
        return f"{self.language}-{self.line}"


def blocks_of(page: Path) -> list[Block]:
    """The fenced blocks of a page, in order."""
    text = page.read_text(encoding="utf-8")
    found = []
    for match in re.finditer(r"^```(\w*)([^\n]*)\n(.*?)^```$", text, re.MULTILINE | re.DOTALL):
        line = text.count("\n", 0, match.start()) + 1
        found.append(Block(match[1], frozenset(match[2].split()), match[3], line))
    return found


def commands_in(text: str) -> list[list[str]]:
    """The words of each command of a shell block, without comments and variables that are set before a command."""
    lines = text.replace("\\\n", " ").splitlines()
    commands = [shlex.split(line, comments=True) for line in lines]
    return [without_variables(words) for words in commands if words]


def without_variables(words: list[str]) -> list[str]:
    """A command without what it sets in its environment."""
    while words and re.fullmatch(r"[A-Z_]+=.*", words[0]):
        words = words[1:]
    return words


def commands_in_text(page: Path) -> list[list[str]]:
    """Commands in backticks outside of fenced blocks, such as `python benchmarks/x.py --rounds 2`."""
    text = re.sub(r"^```.*?^```$", "", page.read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)
    spans = [" ".join(span.split()) for span in re.findall(r"(?<!`)`([^`]+)`(?!`)", text)]
    return [shlex.split(span) for span in spans if re.match(r"(python|accelerate launch) .*\.py\b|make \w", span)]
