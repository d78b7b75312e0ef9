# SPDX-License-Identifier: Apache-2.0
"""Micro-conditioning: facts about an image, besides its caption, that the model is conditioned on.

"scale" is the shorter side of the original image in pixels, before resizing. A level with the default d (its own side,
in the published models) receives min(scale, d): d means that the original was at least as large as the level, a
smaller value that it was enlarged and is blurred. For an image that is cropped to another aspect ratio (a bucket) it
is the side of the square image that would be resized by the same factor. All levels receive the same number, and each
limits it by its own default, so a 128-pixel image counts as sharp for a level of 64 and as blurred for one of 256.
Pipelines use the defaults, that is, they request sharp images. (The published trainer looked up the number under a
name that its data reader never set, and therefore always used the default.)

Any other key is a number in [0, 1] from the column (or the field of the sample's JSON) with the same name. For a
sample without it, the model's default is used.

`micro_conditioning_offsets` adds a constant to the values of a key: {scale: -16.0} declares all images 16 pixels
smaller than they are, {scale: 1024.0} declares all of them large.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from ...checked_values import is_number
from ...models.level_config import LevelConfig
from .skip_budget import shown

SCALE = "scale"
MAX_VALUE = 1e9  # limit of a value; a larger one, or NaN, would spoil a whole batch


def micro_conditioning_defaults(level_configs: Sequence[LevelConfig]) -> dict[str, float]:
    """Return the names that a model with these levels is conditioned on, with their defaults.

    If levels have different defaults, the one of the innermost level is used for images without a value.
    """
    defaults: dict[str, float] = {}
    for level_config in level_configs:
        for key, value in zip(
            level_config.micro_conditioning_keys, level_config.micro_conditioning_defaults, strict=True
        ):
            defaults.setdefault(key, float(value))
    return defaults


def micro_values(
    defaults: Mapping[str, float], short_side: float, fields: Mapping[str, Any], offsets: Mapping[str, float]
) -> dict[str, float]:
    """Return the micro-conditioning values of one image, never below 0.

    Args:
        defaults: the names that the model is conditioned on, and the values used if none is known.
        short_side: shorter side of the image before resizing, in pixels.
        fields: other columns of the image.
        offsets: numbers added to the values, by key.

    Raises:
        ValueError: if a field is not a number.
    """
    values = {}
    for key, default in defaults.items():
        value = short_side if key == SCALE else fields.get(key)
        value = default if value is None else value
        if not is_number(value, -MAX_VALUE, MAX_VALUE):
            raise ValueError(
                f"micro-condition {key!r} must be a number from {-MAX_VALUE:g} to {MAX_VALUE:g}; it is {shown(value)}"
            )
        values[key] = max(float(value) + offsets.get(key, 0.0), 0.0)
    return values


def check_offsets(keys: Mapping[str, float], offsets: Mapping[str, float]) -> None:
    """Check that offsets are for keys that the model is conditioned on.

    Raises:
        ValueError: names the unknown key and the known ones.
    """
    for key in offsets:
        if key not in keys:
            known = ", ".join(keys) if keys else "none"
            raise ValueError(
                f"`micro_conditioning_offsets` names {key!r}, but the micro-conditioning keys of this model are: "
                f"{known}."
            )
