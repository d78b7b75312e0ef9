# SPDX-License-Identifier: Apache-2.0
"""Checks of single values that users pass as arguments or write into configs.

Messages say what the value is and what was expected. A wrong value in a config is always a ValueError; an argument of
a call that has the wrong type is a TypeError.
"""

from __future__ import annotations

import math
import numbers
from typing import Any

from .config_reading import describe


def check_whole_number(value: Any, name: str, low: int, high: int, advice: str = "") -> None:
    """Check that a value is an integer from `low` to `high`.

    Raises:
        ValueError: names the value, what it is and the range.
    """
    is_whole = isinstance(value, numbers.Integral) and not isinstance(value, bool)
    if not is_whole or not low <= value <= high:
        raise ValueError(f"{name} is {describe(value)}; expected a whole number from {low} to {high}.{_also(advice)}")


def check_number(
    value: Any, name: str, low: float = -math.inf, high: float = math.inf, above: bool = False, advice: str = ""
) -> None:
    """Check that a value is a finite number from `low` to `high`.

    Args:
        value: to check.
        name: what the message calls it.
        low: smallest allowed number; with `above`, numbers must be greater than this.
        high: largest allowed number.
        above: whether `low` itself is excluded.
        advice: a sentence added to the end of the message.

    Raises:
        ValueError: names the value, what it is and the range.
    """
    is_number = isinstance(value, numbers.Real) and not isinstance(value, bool) and math.isfinite(value)
    if is_number and low <= value <= high and not (above and value == low):
        return
    limits = [] if low == -math.inf else [f"above {low:g}" if above else f"from {low:g}"]
    limits += [] if high == math.inf else [f"up to {high:g}"]
    expected = " ".join(["a finite number", *limits])
    raise ValueError(f"{name} is {describe(value)}; expected {expected}.{_also(advice)}")


def check_flag(value: Any, name: str) -> None:
    """Check that a value is True or False.

    Raises:
        ValueError: names the value and what it is.
    """
    if not isinstance(value, bool):
        raise ValueError(f"{name} is {describe(value)}; expected True or False.")


def _also(advice: str) -> str:
    return f" {advice}" if advice else ""
