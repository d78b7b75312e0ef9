# SPDX-License-Identifier: Apache-2.0
"""What the model is told about a picture beside its caption.

"scale" is the shorter side of the picture in pixels, as it was before resizing. A level with the default d (its own
side, in the published models) takes min(scale, d): d says that the picture was at least as the level, less
that it was enlarged and is blurred. The same number goes to all levels, and each limits it by its own default, so a
128 pixel picture is sharp to a level of 64 and blurred to one of 256. Drawing uses the defaults, and so asks for sharp
pictures. (The published trainer looked the number up under a name that its reader never wrote, and so always saw the
default.)

Any other key is a number in [0, 1] from the column, or the field of the sample's JSON, of the same name. A sample
without it has the model's default.

`micro_conditioning_offsets` adds a constant to a key's values: {scale: -16.0} declares all pictures 16 pixels smaller
than they are, {scale: 1024.0} all of them large, whatever they were.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from ...models.level_config import LevelConfig
from .skip_budget import shown

SCALE = "scale"
MAX_VALUE = 1e9  # of a condition; what is larger, or no number, would spoil a whole batch


def micro_conditioning_defaults(rows: Sequence[LevelConfig]) -> dict[str, float]:
    """The names that a model of these levels is conditioned on, with their defaults.

    Where levels have different defaults it is the innermost one's: the value of a picture of which nothing is known.
    """
    defaults: dict[str, float] = {}
    for row in rows:
        for key, value in zip(row.micro_conditioning_keys, row.micro_conditioning_defaults, strict=True):
            defaults.setdefault(key, float(value))
    return defaults


def micro_values(
    defaults: Mapping[str, float], short_side: int, fields: Mapping[str, Any], offsets: Mapping[str, float]
) -> dict[str, float]:
    """The micro-conditions of one picture, never below 0.

    Args:
        defaults: the names that the model is conditioned on, and the value where none is known.
        short_side: of the picture before resizing, in pixels.
        fields: other numbers that are known of it.
        offsets: added to the values, by key.

    Raises:
        ValueError: if a field is not a number.
    """
    values = {}
    for key, default in defaults.items():
        value = short_side if key == SCALE else fields.get(key)
        value = default if value is None else value
        is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
        if not is_number or not -MAX_VALUE <= value <= MAX_VALUE:
            raise ValueError(
                f"micro-condition {key!r} must be a number from {-MAX_VALUE:g} to {MAX_VALUE:g}; it is {shown(value)}"
            )
        values[key] = max(float(value) + offsets.get(key, 0.0), 0.0)
    return values


def check_offsets(keys: Mapping[str, float], offsets: Mapping[str, float]) -> None:
    """Refuse offsets of conditions that the model does not have.

    Raises:
        ValueError: naming the key and those that exist.
    """
    for key in offsets:
        if key not in keys:
            known = ", ".join(keys) if keys else "none"
            raise ValueError(
                f"`micro_conditioning_offsets` names {key!r}, but the micro-conditions of this model are: {known}."
            )
