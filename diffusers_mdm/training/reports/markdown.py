# SPDX-License-Identifier: Apache-2.0
"""Texts of users as Markdown shows them: literally, whatever they contain, and on one line."""

import json
import re

_JOINER = "\u200d"  # joins emoji; not printable by itself


def one_line(text: str) -> str:
    """A text without line breaks and other control characters, and without halves of characters (lone surrogates)."""
    printable = "".join(char if char.isprintable() or char == _JOINER else " " for char in text)
    return " ".join(printable.split())


def inline_code(text: str) -> str:
    """A text as a span of code. Inside one nothing is markup, once the fence is longer than all runs of backticks."""
    content = one_line(text)
    if not content:
        return "(empty)"
    fence = "`" * (1 + max(map(len, re.findall("`+", content)), default=0))
    padding = " " if content[0] == "`" or content[-1] == "`" else ""
    return f"{fence}{padding}{content}{padding}{fence}"


def plain_text(text: str) -> str:
    """A text as running text, with what would be markup, a link or HTML escaped."""
    return re.sub(r"([\\`*\[\]<>&|~])", r"\\\1", one_line(text))


def table_row(cells: list[str]) -> str:
    """A line of a table from cells of Markdown; a bar divides cells even inside of code, unless it is escaped."""
    escaped = [re.sub(r"(?<!\\)[|]", r"\|", cell) for cell in cells]
    return f"| {' | '.join(escaped)} |"


def python_string(text: str) -> str:
    """A text as Python writes it, in double quotes on one line."""
    return json.dumps(text, ensure_ascii=not is_encodable(text))


def is_encodable(text: str) -> bool:
    """Whether a text can be written as UTF-8, which halves of characters cannot."""
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        return False
    return True
