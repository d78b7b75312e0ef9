# SPDX-License-Identifier: Apache-2.0
"""Strict reading of plain YAML values into frozen dataclasses: every mistake is a ValueError that names its field."""

import dataclasses
import inspect
import types
import typing
from typing import Any, TypeVar

T = TypeVar("T")


class FieldError(ValueError):
    """A value of a recipe is missing, unknown, of the wrong type or impossible; the message names the field."""

    def __init__(self, field: str, problem: str):
        super().__init__(f"`{field}` {problem}")


def read_fields(cls: type[T], values: Any, where: str = "") -> T:
    """Build the dataclass `cls` from a mapping, refusing unknown keys, missing keys and wrong types.

    `where` is the dotted place of the mapping in its file, used in messages. Lists become tuples, integers are
    accepted where a float is expected, nothing else is converted.
    """
    if not isinstance(values, dict):
        raise FieldError(where or "recipe", f"must be a mapping of names to values, got {values!r}.")
    hints = typing.get_type_hints(cls)
    fields = {field.name: field for field in dataclasses.fields(cls)}  # type: ignore[arg-type]
    unknown = [str(key) for key in values if key not in fields]
    if unknown:
        raise FieldError(_join(where, unknown[0]), f"is not a known field; here one can write {', '.join(fields)}.")
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


def _join(where: str, name: str) -> str:
    return f"{where}.{name}" if where else name


def _read_value(hint: Any, value: Any, where: str) -> Any:
    origin = typing.get_origin(hint)
    if hint is Any:
        return value
    if origin in (typing.Union, types.UnionType):
        return _read_union(hint, value, where)
    if origin is tuple:
        return _read_tuple(hint, value, where)
    if origin is typing.Literal:
        choices = typing.get_args(hint)
        if value not in choices:
            raise FieldError(where, f"must be one of {', '.join(map(repr, choices))}, got {value!r}.")
        return value
    if origin is dict:
        if not isinstance(value, dict):
            raise FieldError(where, f"must be a mapping of names to values, got {value!r}.")
        return dict(value)
    if dataclasses.is_dataclass(hint):
        return read_fields(typing.cast(type, hint), value, where)
    if hint is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if not isinstance(value, hint) or (isinstance(value, bool) and hint is not bool):
        raise FieldError(where, f"must be {_spell(hint)}, got {value!r}.")
    return value


def _read_union(hint: Any, value: Any, where: str) -> Any:
    options = [option for option in typing.get_args(hint) if option is not type(None)]
    if value is None and type(None) in typing.get_args(hint):
        return None
    return _read_value(options[0], value, where)


def _read_tuple(hint: Any, value: Any, where: str) -> tuple[Any, ...]:
    if not isinstance(value, (list, tuple)):
        raise FieldError(where, f"must be a list, got {value!r}.")
    element = typing.get_args(hint)[0]
    return tuple(_read_value(element, entry, f"{where}[{position}]") for position, entry in enumerate(value))


def _spell(hint: type) -> str:
    words = {
        int: "an integer",
        float: "a number (write 1.0e-3, YAML reads 1e-3 as text)",
        str: "text",
        bool: "true or false",
    }
    return words.get(hint, hint.__name__)


def argument_defaults(cls: type) -> dict[str, Any]:
    """Names of what a class is made with, and the default of each; None where there is none."""
    parameters = dict(inspect.signature(cls.__init__).parameters)  # type: ignore[misc]
    parameters.pop("self")
    return {
        name: None if parameter.default is inspect.Parameter.empty else parameter.default
        for name, parameter in parameters.items()
    }
