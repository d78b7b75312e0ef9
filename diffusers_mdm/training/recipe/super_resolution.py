# SPDX-License-Identifier: Apache-2.0
"""Training a model to enlarge images: the second part of a cascade."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ...models.level_config import NOISE_LEVEL, LevelConfig
from .fields import COUNT, FieldError, Range, check_ranges


@dataclass(frozen=True)
class SuperResolutionRecipe:
    """The model also sees the image at a lower resolution, enlarged and with noise added, as further input channels.

    How much noise is sampled for each image, evenly from 0 to `max_noise_level`; the model knows it as the
    micro-condition `noise_level`. It hides the errors of the small images that the model will be given later, which
    are generated.
    """

    low_resolution: int  # side of the small images in pixels; must divide that of the level
    max_noise_level: float = 0.5  # standard deviation of the noise; the enlarged image is scaled by sqrt(1 - level^2)

    def __post_init__(self) -> None:
        check_ranges(self, {"low_resolution": COUNT, "max_noise_level": Range(0, 1)})


def check_channels(model: Mapping[str, Any], settings: SuperResolutionRecipe | None) -> None:
    """Check that a model takes as many channels as it predicts or, for super-resolution, twice as many.

    Raises:
        FieldError: names the field.
    """
    taken, predicted = (model.get(name, 3) for name in ("in_channels", "out_channels"))
    if settings is None and taken != predicted:
        raise FieldError(
            "model.in_channels",
            f"is {taken}, but `out_channels` is {predicted}; they must be equal, or with `super_resolution` the "
            "first must be twice the second.",
        )
    if settings is not None and taken != 2 * predicted:
        raise FieldError(
            "model.in_channels",
            f"is {taken}; with `super_resolution` it must be {2 * predicted}, twice `out_channels`: the channels of "
            "the noisy image, and those of the enlarged one.",
        )


def check_levels_fit(settings: SuperResolutionRecipe, level_configs: Sequence[LevelConfig], side: int) -> None:
    """Check that the levels of a model fit super-resolution.

    Args:
        settings: the low resolution.
        level_configs: config of every level.
        side: side of the outermost level in pixels.

    Raises:
        FieldError: names the field.
    """
    if len(level_configs) != 1:
        raise FieldError("super_resolution", f"needs a model with one level; this one has {len(level_configs)}.")
    if NOISE_LEVEL not in level_configs[0].micro_conditioning_keys:
        raise FieldError(
            "levels[0].micro_conditioning_keys",
            f"must contain {NOISE_LEVEL!r} (with 0.0 in `micro_conditioning_defaults`), by which the model knows how "
            "noisy the enlarged image is.",
        )
    if side % settings.low_resolution or side == settings.low_resolution:
        raise FieldError(
            "super_resolution.low_resolution",
            f"is {settings.low_resolution}, but must be smaller than the side of the level, {side}, and divide it.",
        )
