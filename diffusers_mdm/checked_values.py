# SPDX-License-Identifier: Apache-2.0
"""Checks of single values that users pass as arguments or write into configs.

Messages say what the value is and what was expected. A wrong value in a config is always a ValueError; an argument of
a call that has the wrong type is a TypeError.
"""

from __future__ import annotations

import math
import numbers
import reprlib
from typing import Any

_LONGEST = 80  # characters of a text, number or object in a message


def describe(value: Any) -> str:
    """Return a short text for any value, for error messages.

    It is the `repr` of plain values, cut to a length and depth that fit in a message; of tensors and arrays it is
    their shape and dtype, of other objects their type. Unlike `repr`, it is also fast and short for values that
    contain themselves, or that share parts so often that their full text would not fit in memory.
    """
    return _SHORT.repr(value)


class _ShortRepr(reprlib.Repr):
    def __init__(self) -> None:
        super().__init__()
        self.maxlevel = 3
        self.maxdict = self.maxlist = self.maxtuple = self.maxset = self.maxfrozenset = self.maxdeque = 6
        self.maxstring = self.maxother = self.maxlong = _LONGEST

    def repr_int(self, number: int, level: int) -> str:
        # Python refuses to write integers of more than 4,300 digits.
        if number.bit_length() > 1024:
            return f"an integer of {number.bit_length()} bits"
        return super().repr_int(number, level)

    def repr_instance(self, value: Any, level: int) -> str:
        if hasattr(value, "shape") and hasattr(value, "dtype") and value.ndim:
            device = getattr(value, "device", "cpu")
            where = "" if str(device) == "cpu" else f" on {device}"
            return f"{type(value).__name__} of shape {tuple(value.shape)} and type {value.dtype}{where}"
        text = super().repr_instance(value, level)
        return text if len(text) < _LONGEST and "\n" not in text else f"an object of type {type(value).__name__}"


_SHORT = _ShortRepr()


def is_whole_number(value: Any, low: float = -math.inf, high: float = math.inf) -> bool:
    """Return whether a value is an integer (not a bool) from `low` to `high`."""
    return isinstance(value, numbers.Integral) and not isinstance(value, bool) and low <= int(value) <= high


def is_number(value: Any, low: float = -math.inf, high: float = math.inf) -> bool:
    """Return whether a value is a finite number (not a bool) from `low` to `high`."""
    if not isinstance(value, numbers.Real) or isinstance(value, bool):
        return False
    try:
        return math.isfinite(value) and low <= float(value) <= high
    except OverflowError:  # an integer beyond the range of floats
        return False


def check_whole_number(value: Any, name: str, low: int, high: int, advice: str = "") -> None:
    """Check that a value is an integer from `low` to `high`.

    Raises:
        ValueError: names the value, what it is and the range.
    """
    if not is_whole_number(value, low, high):
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
    if is_number(value, low, high) and not (above and value == low):
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
