# SPDX-License-Identifier: Apache-2.0
"""Strict conversion of plain YAML values to frozen dataclasses: every mistake is a ValueError that names the field."""

import dataclasses
import difflib
import inspect
import math
import types
import typing
from collections.abc import Collection, Mapping
from typing import Any, NamedTuple, TypeVar

from ...checked_values import describe

T = TypeVar("T")
# No setting is larger; a larger value would overflow somewhere inside a library.
LARGEST = 10**12


class Range(NamedTuple):
    """The range of numbers that a field allows; an open end is excluded."""

    low: float = -math.inf
    high: float = math.inf
    open_low: bool = False
    open_high: bool = False

    def holds(self, number: float) -> bool:
        """Return whether a number is allowed; NaN never is."""
        above = number > self.low if self.open_low else number >= self.low
        below = number < self.high if self.open_high else number <= self.high
        return above and below

    def __str__(self) -> str:
        low = f"{'above' if self.open_low else 'at least'} {self.low:,}"
        high = f"{'below' if self.open_high else 'at most'} {self.high:,}"
        if self.high == math.inf:
            return low
        return high if self.low == -math.inf else f"{low} and {high}"


POSITIVE = Range(0, open_low=True)
NOT_NEGATIVE = Range(0)
COUNT = Range(1)
SHARE = Range(0, 1)
SHARE_BELOW_ONE = Range(0, 1, open_high=True)


class FieldError(ValueError):
    """A value of a recipe is missing, unknown, of the wrong type or invalid; the message names the field."""

    def __init__(self, field: str, problem: str):
        super().__init__(f"`{field}` {problem}")


def read_fields(cls: type[T], values: Any, where: str = "") -> T:
    """Build the dataclass `cls` from a mapping, refusing unknown keys, missing keys and wrong types.

    If `cls` has a method `choose_kind`, that chooses the class for the values. If it has a mapping `RENAMED`, older
    names of its fields are read, too.

    `where` is the dotted path of the mapping in its file, for messages. Lists become tuples, and integers are accepted
    as floats; nothing else is converted.
    """
    if not isinstance(values, dict):
        raise FieldError(where or "recipe", f"must be a mapping of names to values, got {describe(values)}.")
    choose_kind = getattr(cls, "choose_kind", None)
    if choose_kind is not None:
        try:
            cls, values = choose_kind(values)
        except ValueError as error:
            raise FieldError(where, f"cannot be read: {error}") from error
    hints = typing.get_type_hints(cls)
    fields = {field.name: field for field in dataclasses.fields(cls)}  # type: ignore[arg-type]
    values = with_new_names(values, getattr(cls, "RENAMED", {}), where)
    refuse_unknown(where, values, fields)
    arguments = {}
    for name, field in fields.items():
        if name in values:
            arguments[name] = _read_value(hints[name], values[name], _join(where, name))
        elif field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING:
            raise FieldError(_join(where, name), "is missing and has no default.")
    try:
        return cls(**arguments)
    except FieldError:
        raise
    except ValueError as error:
        raise ValueError(f"`{where}`: {error}" if where else str(error)) from error


def with_new_names(values: Mapping[Any, Any], renamed: Mapping[str, str], where: str = "") -> dict[Any, Any]:
    """Replace older names of fields with their new ones.

    Args:
        values: the values by name.
        renamed: the new names by older name.
        where: dotted path of the mapping in its file.

    Raises:
        FieldError: a field is given under both names.
    """
    for old, name in renamed.items():
        if old in values and name in values:
            raise FieldError(
                _join(where, old), f"is the older name of `{name}`, which is given too: remove one of them."
            )
    return {renamed.get(name, name) if isinstance(name, str) else name: value for name, value in values.items()}


def refuse_unknown(where: str, values: Mapping[Any, Any], known: Collection[str]) -> None:
    """Refuse unknown names, and suggest the most similar known one.

    Raises:
        FieldError: names the first unknown name and lists the known ones.
    """
    for key in values:
        if key not in known:
            name = key if isinstance(key, str) and key else describe(key)
            near = difflib.get_close_matches(name[:80], known, 1)
            guess = f"; did you mean `{near[0]}`?" if near else "."
            raise FieldError(
                _join(where, name[:80]), f"is not a known field{guess} Known fields here are {', '.join(known)}."
            )


def read_arguments(
    cls: type, values: Mapping[str, Any], where: str, leave_out: Collection[str] = ()
) -> dict[str, Any]:
    """Check arguments of a class by its annotations, as `read_fields` checks fields.

    Args:
        cls: the class.
        values: its arguments by name; missing ones have their defaults.
        where: dotted path of the mapping in its file.
        leave_out: arguments that are given elsewhere.

    Raises:
        FieldError: one is unknown or of the wrong type.
    """
    refuse_unknown(where, values, [name for name in argument_defaults(cls) if name not in leave_out])
    hints = typing.get_type_hints(cls.__init__)  # type: ignore[misc]
    return {name: _read_value(hints[name], value, _join(where, name)) for name, value in values.items()}


def check_ranges(values: Any, ranges: Mapping[str, Range]) -> None:
    """Check that numbers are within the ranges of their fields; every entry of a list is checked, None is skipped.

    Args:
        values: a mapping, or an object with fields.
        ranges: the ranges by field.

    Raises:
        ValueError: names the field, its range, and the number.
    """
    for field, allowed in ranges.items():
        found = values.get(field) if isinstance(values, Mapping) else getattr(values, field)
        for number in found if isinstance(found, (tuple, list)) else (found,):
            if number is not None and not allowed.holds(number):
                raise ValueError(f"`{field}` must be {allowed}, got {describe(found)}.")


def _join(where: str, name: str) -> str:
    return f"{where}.{name}" if where else name


def _read_value(hint: Any, value: Any, where: str) -> Any:
    origin = typing.get_origin(hint)
    if hint is Any:
        return value
    if origin in (typing.Union, types.UnionType):
        return _read_union(hint, value, where)
    if origin in (tuple, list):
        return _read_list(hint, value, where)
    if origin is typing.Literal:
        choices = typing.get_args(hint)
        if not isinstance(value, str) or value not in choices:
            raise FieldError(where, f"must be one of {', '.join(map(repr, choices))}, got {describe(value)}.")
        return value
    if origin is dict:
        return _read_mapping(hint, value, where)
    if dataclasses.is_dataclass(hint):
        return read_fields(typing.cast(type, hint), value, where)
    if hint is float and isinstance(value, int) and not isinstance(value, bool) and abs(value) <= LARGEST:
        return float(value)
    if not isinstance(value, hint) or (isinstance(value, bool) and hint is not bool):
        raise FieldError(where, f"must be {_spell(hint)}, got {describe(value)}.")
    if hint is str and any("\ud800" <= character <= "\udfff" for character in value):
        raise FieldError(where, f"is {describe(value)}; a lone surrogate is not a character and cannot be saved.")
    if hint in (int, float) and not (math.isfinite(value) and abs(value) <= LARGEST):
        raise FieldError(where, f"must be a finite number of at most {LARGEST:,}, got {describe(value)}.")
    return value


def _read_union(hint: Any, value: Any, where: str) -> Any:
    options = [option for option in typing.get_args(hint) if option is not type(None)]
    if value is None and type(None) in typing.get_args(hint):
        return None
    # Of `numpy.ndarray | list[float]` a file can only have the list; of `str | list[str]` it has one of both.
    readable = [option for option in options if option.__module__ != "numpy"]
    is_list = isinstance(value, (list, tuple))
    fitting = [option for option in readable if (typing.get_origin(option) in (list, tuple)) == is_list]
    return _read_value((fitting or readable)[-1], value, where)


def _read_mapping(hint: Any, value: Any, where: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise FieldError(where, f"must be a mapping of names to values, got {describe(value)}.")
    wrong = [key for key in value if not isinstance(key, str)]
    if wrong:
        raise FieldError(where, f"must have names as keys, got {describe(wrong[0])}.")
    entry = typing.get_args(hint)[1]
    return {name: _read_value(entry, item, _join(where, name)) for name, item in value.items()}


def _read_list(hint: Any, value: Any, where: str) -> Any:
    if not isinstance(value, (list, tuple)):
        raise FieldError(where, f"must be a list, got {describe(value)}.")
    element = typing.get_args(hint)[0]
    entries = [_read_value(element, entry, f"{where}[{position}]") for position, entry in enumerate(value)]
    return entries if typing.get_origin(hint) is list else tuple(entries)


def _spell(hint: type) -> str:
    words = {
        int: "an integer",
        float: "a number (write 1.0e-3, YAML reads 1e-3 as text)",
        str: "text",
        bool: "true or false",
    }
    return words.get(hint, hint.__name__)


def argument_defaults(cls: type) -> dict[str, Any]:
    """Return the arguments of a class by name with their defaults; None for arguments without a default."""
    parameters = dict(inspect.signature(cls.__init__).parameters)  # type: ignore[misc]
    parameters.pop("self")
    return {
        name: None if parameter.default is inspect.Parameter.empty else parameter.default
        for name, parameter in parameters.items()
    }
