# SPDX-License-Identifier: Apache-2.0
"""Values of a foreign config, looked up in its YAML and in pickled arguments, parsed and compared.

Both sources are untrusted: a value may be infinite, of a wrong type, contain itself, or share its parts so often that
its text would not fit in memory. Every parser therefore checks types before it looks inside.
"""

import math
from collections.abc import Callable, Mapping
from typing import Any

from ..checked_values import describe
from .inert_objects import PickledObject, mapping_of

# Members of ml-mdm's enums by value, as its trainer pickles them.
ENUM_MEMBERS = {
    "ScheduleType": {0: "COSINE", 2: "DDPM", 3: "DEEPFLOYD"},
    "PredictionType": {3: "DDPM", 4: "DDIM", 5: "V_PREDICTION"},
    "ThresholdType": {0: "NONE", 1: "CLIP", 2: "DYNAMIC", 3: "DYNAMIC_IF"},
}
REQUIRED = object()
# Larger than any model needs, and small enough to add, multiply and print.
MAX_INTEGER = 2**31
MAX_ENTRIES = 1000


class Facts:
    """One mapping of the config, in the YAML and in the arguments; it may be missing from either.

    Args:
        path: dotted path of the mapping in the config.
        yaml: its value in the config file.
        args: its value in the checkpoint's arguments: a mapping or an inert object.
    """

    def __init__(self, path: str, yaml: Any, args: Any):
        self.path = path
        self.yaml: Mapping[str, Any] = yaml if isinstance(yaml, Mapping) else {}
        self.args: Mapping[str, Any] = mapping_of(args) or {}

    def child(self, key: str) -> "Facts":
        """Return a mapping inside this one; empty if there is none."""
        return Facts(f"{self.path}.{key}" if self.path else key, self.yaml.get(key), self.args.get(key))

    def __bool__(self) -> bool:
        return bool(self.yaml or self.args)

    def get(self, key: str, parse: Callable[[Any], Any], default: Any = REQUIRED, compare: bool = True) -> Any:
        """Return one parsed value.

        Args:
            key: name within this mapping.
            parse: converts a raw value into one that can be compared; the name is added to its ValueErrors.
            default: value if both sources omit it; without a default, that is an error.
            compare: whether a disagreement is an error (for values that change the output) or the YAML wins.

        Raises:
            ValueError: the value is missing, cannot be parsed, or differs between the two sources.
        """
        name = f"{self.path}.{key}" if self.path else key
        found = [_parse(name, side[key], parse) for side in (self.yaml, self.args) if key in side]
        if not found:
            if default is REQUIRED:
                raise ValueError(
                    f"Neither the config file nor the checkpoint's arguments contain `{name}`; add it "
                    f"to the config file."
                )
            return default
        if compare and len(found) == 2 and found[0] != found[1]:
            raise ValueError(
                f"`{name}` is {describe(found[0])} in the config file but {describe(found[1])} in the arguments that "
                "the checkpoint was trained with; use the config that belongs to this checkpoint."
            )
        return found[0]


def _parse(name: str, value: Any, parse: Callable[[Any], Any]) -> Any:
    try:
        return parse(value)
    except ValueError as error:
        raise ValueError(f"`{name}` cannot be used: {error}") from error


def integer(value: Any) -> int:
    """Parse a whole number, possibly written as text or with a decimal point."""
    found = number(value)
    if found != int(found) or abs(found) > MAX_INTEGER:
        raise ValueError(f"expected a whole number of at most {MAX_INTEGER}, got {describe(value)}.")
    return int(found)


def count(value: Any) -> int:
    """Parse a whole number of at least 0."""
    found = integer(value)
    if found < 0:
        raise ValueError(f"expected a whole number of at least 0, got {describe(value)}.")
    return found


def positive(value: Any) -> int:
    """Parse a whole number of at least 1."""
    found = integer(value)
    if found < 1:
        raise ValueError(f"expected a whole number of at least 1, got {describe(value)}.")
    return found


def number(value: Any) -> float:
    """Parse a finite number, possibly written as text."""
    try:
        found = float(value) if isinstance(value, (int, float, str)) else math.nan
    except (ValueError, OverflowError):
        found = math.nan
    if not math.isfinite(found):
        raise ValueError(f"expected a finite number, got {describe(value)}.")
    return found


def optional_number(value: Any) -> float:
    """Parse a finite number; 0 for None or empty text."""
    return 0.0 if value is None or value == "" else number(value)


def flag(value: Any) -> bool:
    """Parse a boolean, possibly written as 1 or 0; False for None."""
    if isinstance(value, (type(None), int)) and value in (None, 0, 1):
        return bool(value)
    raise ValueError(f"expected true or false, got {describe(value)}.")


def counts(value: Any) -> tuple[int, ...]:
    """Parse whole numbers written as a list or, as ml-mdm also accepts, as text: "256,512,768"."""
    if isinstance(value, str):
        value = [item for item in value.split(",") if item.strip()]
    if isinstance(value, int):
        value = [value]
    if not isinstance(value, (list, tuple)):
        raise ValueError(f"expected whole numbers, got {describe(value)}.")
    if len(value) > MAX_ENTRIES:
        raise ValueError(f"it has {len(value)} entries, more than any model has.")
    return tuple(count(item) for item in value)


def optional_counts(value: Any) -> tuple[int, ...] | None:
    """Parse whole numbers, or None."""
    return None if value is None else counts(value)


def optional_positive(value: Any) -> int | None:
    """Parse a whole number of at least 1; None for None and for numbers below 1, which in ml-mdm mean "not set"."""
    found = 0 if value is None else integer(value)
    return found if found > 0 else None


def member(value: Any) -> str:
    """Parse the name of an enum member, which is text in YAML and a call of the enum class in the arguments."""
    if isinstance(value, PickledObject):
        index = value.args[0] if isinstance(value.args, tuple) and value.args else None
        value = ENUM_MEMBERS.get(value.name, {}).get(index) if isinstance(index, int) else None
    if not isinstance(value, str):
        raise ValueError("it is not the name of an enum member.")
    return value.upper()


def micro_conditions(value: Any) -> tuple[tuple[str, float], ...]:
    """Parse "scale:64,other:0" into pairs (key, default); none for None or empty text."""
    if not isinstance(value, (str, type(None))):
        raise ValueError(f"expected text such as 'scale:64', got {describe(value)}.")
    pairs = [pair.split(":") for pair in (value or "").split(",") if pair.strip()]
    if any(len(pair) != 2 for pair in pairs) or len(pairs) > MAX_ENTRIES:
        raise ValueError(f"expected 'key:default,key:default', got {describe(value)}.")
    return tuple((key.strip(), number(default)) for key, default in pairs)
