# SPDX-License-Identifier: Apache-2.0
"""Brace patterns in the names of shards: "{000..123}" is a range, with leading zeros, and "{a,b}" a list.

The number of names is known before the first one is created, so that a typo leads to an error instead of filling the
memory. (The braceexpand library, which WebDataset uses, expands every range in memory first.)
"""

import itertools
import math
import re
from collections.abc import Iterable, Sequence

MAX_SHARDS = 1_000_000
_BRACES = re.compile(r"\{([^{}]*)\}")
_RANGE = re.compile(r"(\d+)\.\.(\d+)", re.ASCII)
_MAX_DIGITS = 18


def expand_patterns(patterns: Sequence[str]) -> list[str]:
    """Expand patterns to all names that they stand for, in order.

    Raises:
        ValueError: if braces contain something else, or there are more than `MAX_SHARDS` names.
    """
    parsed = [_parse(pattern) for pattern in patterns]
    count = sum(math.prod(len(choices) for choices in parts) for parts in parsed)
    if count > MAX_SHARDS:
        raise ValueError(
            f"The shard pattern {_largest(patterns, parsed)!r} stands for too many files: {count:,} in all, expected "
            f"at most {MAX_SHARDS:,}. Check the numbers in its braces."
        )
    return [name for parts in parsed for name in _names(parts)]


def _names(parts: Sequence[Sequence[str]]) -> Iterable[str]:
    return ("".join(choice) for choice in itertools.product(*parts))


def _largest(patterns: Sequence[str], parsed: Sequence[Sequence[Sequence[str]]]) -> str:
    sizes = [math.prod(len(choices) for choices in parts) for parts in parsed]
    return patterns[sizes.index(max(sizes))]


def _parse(pattern: str) -> list[Sequence[str]]:
    """Parse a pattern into a list of the choices at each place."""
    parts: list[Sequence[str]] = []
    for position, text in enumerate(_BRACES.split(pattern)):
        if position % 2:
            parts.append(_choices(text, pattern))
        elif "{" in text or "}" in text:
            raise ValueError(f"The shard pattern {pattern!r} has an unmatched brace.")
        else:
            parts.append((text,))
    return parts


def _choices(text: str, pattern: str) -> Sequence[str]:
    found = _RANGE.fullmatch(text)
    if found is None and "," in text:
        return text.split(",")
    if found is None:
        raise ValueError(f"The shard pattern {pattern!r} needs {{first..last}} or {{one,another}} in its braces.")
    first, last = found[1], found[2]
    if max(len(first), len(last)) > _MAX_DIGITS:
        raise ValueError(f"The shard pattern {pattern[:60]!r} counts with numbers of more than {_MAX_DIGITS} digits.")
    if int(first) > int(last):
        raise ValueError(f"The shard pattern {pattern!r} counts down; write {{{last}..{first}}}.")
    return NumberedNames(int(first), int(last), len(first) if first.startswith("0") else 0)


class NumberedNames(Sequence[str]):
    """The numbers from `first` to `last` as text, created only when accessed.

    Args:
        first: first number.
        last: last number, included.
        width: number of digits, filled with leading zeros.
    """

    def __init__(self, first: int, last: int, width: int):
        self.numbers, self.width = range(first, last + 1), width

    def __len__(self) -> int:
        return len(self.numbers)

    def __getitem__(self, place):  # type: ignore[no-untyped-def]  # typing.Sequence asks for slices, too
        return f"{self.numbers[place]:0{self.width}d}"
