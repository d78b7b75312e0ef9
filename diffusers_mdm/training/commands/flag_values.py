# SPDX-License-Identifier: Apache-2.0
"""What a flag is, and the parsing of its value: numbers, seeds and lists; argparse reports errors of parsing."""

import argparse
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, get_args, get_type_hints


@dataclass(frozen=True)
class Flag:
    """A flag. `convert` is None for a switch, which can be given as `--name` and as `--no-name`."""

    name: str
    field: str | None
    help: str
    convert: Callable[[str], Any] | None = str
    choices: tuple[str, ...] | None = None
    is_list: bool = False
    older_name: str | None = None  # accepted, but not shown in `--help`


def switch(name: str, field: str | None, text: str) -> Flag:
    """A flag without a value."""
    return Flag(name, field, text, convert=None)


def choices_of(cls: type, field: str) -> tuple[str, ...]:
    """Return the values that a dataclass field allows, without `None`."""
    hint = get_type_hints(cls)[field]
    options = [option for option in get_args(hint) if option is not type(None)]
    return tuple(option for option in options if isinstance(option, str)) or get_args(options[0])


def whole(text: str) -> int:
    """Parse a whole number."""
    try:
        return int(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"must be a whole number, got {text!r}") from None


def count(text: str) -> int:
    """Parse a whole number of at least 1."""
    if (number := whole(text)) < 1:
        raise argparse.ArgumentTypeError(f"must be at least 1, got {number}")
    return number


def natural(text: str) -> int:
    """Parse a whole number of at least 0."""
    if (number := whole(text)) < 0:
        raise argparse.ArgumentTypeError(f"must not be negative, got {number}")
    return number


def naturals(text: str) -> tuple[int, ...]:
    """Parse whole numbers of at least 0 separated by commas, as in "1,2"."""
    return tuple(natural(part) for part in text.split(","))


def seed(text: str) -> int:
    """Parse a seed for random generators."""
    if not 0 <= (number := whole(text)) < 2**32:
        raise argparse.ArgumentTypeError(f"must be 0 to {2**32 - 1}, got {number}")
    return number


def number(text: str) -> float:
    """Parse a finite number."""
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise argparse.ArgumentTypeError(f"must be a number, such as 0.5 or 1e-5, got {text!r}")
    return value


def numbers(text: str) -> tuple[float, ...]:
    """Parse numbers separated by commas, as in "1,0.5,0.25"."""
    return tuple(number(part) for part in text.split(","))


def per_level(text: str) -> float | tuple[float, ...]:
    """Parse one number for all levels, or numbers separated by commas, one for each."""
    parts = numbers(text)
    return parts if "," in text else parts[0]


def names(text: str) -> tuple[str, ...]:
    """Parse names separated by commas, as in "to_q,to_k"."""
    return tuple(part.strip() for part in text.split(",") if part.strip())


def shares(text: str) -> dict[str, float]:
    """Parse names with numbers, as in "label=0.15,keywords=0.05"."""
    found: dict[str, float] = {}
    for part in filter(None, text.split(",")):
        name, _, value = (word.strip() for word in part.rpartition("="))
        if not name or name in found:
            raise argparse.ArgumentTypeError(f"must be different names with numbers, such as label=0.15, got {text!r}")
        found[name] = number(value)
    return found


def sizes(text: str) -> tuple[tuple[int, ...], ...]:
    """Parse heights and widths, as in "512,384;512,448"."""
    found = tuple(tuple(count(side) for side in part.split(",")) for part in text.split(";") if part.strip())
    if not found or any(len(size) != 2 for size in found):
        raise argparse.ArgumentTypeError(f"must be sizes height,width, such as 48,80;80,48, got {text!r}")
    return found


def tracker(text: str) -> str | None:
    """Parse the name of a tracker; "none" for no tracker."""
    return None if text == "none" else text
