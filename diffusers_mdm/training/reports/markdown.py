# SPDX-License-Identifier: Apache-2.0
"""Escaping of user text, so that Markdown shows it literally and on one line."""

import json
import re

_JOINER = "\u200d"  # joins emoji; not printable by itself


def one_line(text: str) -> str:
    """Return a text without line breaks, other control characters and lone surrogates."""
    printable = "".join(char if char.isprintable() or char == _JOINER else " " for char in text)
    return " ".join(printable.split())


def inline_code(text: str) -> str:
    """Return a text as a code span. The fence is longer than all runs of backticks in it, so nothing inside is
    markup.
    """
    content = one_line(text)
    if not content:
        return "(empty)"
    fence = "`" * (1 + max(map(len, re.findall("`+", content)), default=0))
    padding = " " if content[0] == "`" or content[-1] == "`" else ""
    return f"{fence}{padding}{content}{padding}{fence}"


def plain_text(text: str) -> str:
    """Return a text with everything escaped that would be markup, a link or HTML."""
    return re.sub(r"([\\`*\[\]<>&|~])", r"\\\1", one_line(text))


def table_row(cells: list[str]) -> str:
    """Return a table row from Markdown cells. Bars are escaped, since they separate cells even inside code."""
    escaped = [re.sub(r"(?<!\\)[|]", r"\|", cell) for cell in cells]
    return f"| {' | '.join(escaped)} |"


def python_string(text: str) -> str:
    """Return a text as a Python literal, in double quotes on one line."""
    return json.dumps(text, ensure_ascii=not is_encodable(text))


def is_encodable(text: str) -> bool:
    """Return whether a text can be encoded as UTF-8, which is not so for lone surrogates."""
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        return False
    return True
