# SPDX-License-Identifier: Apache-2.0
"""Aspect-ratio buckets: the sizes to which the images of a recipe are cropped, at every level in the same ratio."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Protocol

from ...models.level_config import LevelConfig
from ...models.level_geometry import LevelGeometry
from ...pyramid import Size, level_of_size
from .data import DataRecipe
from .fields import FieldError
from .pretrained import PriorRecipe
from .stage import StageRecipe

FIELD = "data.aspect_ratio_buckets"
# The largest ratio of the sides of buckets that are chosen automatically.
LARGEST_RATIO = 2.0


class BucketRecipe(Protocol):
    """The fields of a `Recipe` that are needed here."""

    @property
    def data(self) -> DataRecipe:
        """The training data."""

    @property
    def images(self) -> DataRecipe | None:
        """Images for a video model."""

    @property
    def stages(self) -> tuple[StageRecipe, ...]:
        """From the inside out."""

    @property
    def level_configs(self) -> tuple[LevelConfig, ...]:
        """The configs of the levels, innermost first."""

    @property
    def sides(self) -> tuple[int, ...]:
        """Sides of the levels, in pixels or latents."""

    @property
    def prior_preservation(self) -> PriorRecipe | None:
        """Prior preservation for a subject."""


def check_buckets(recipe: BucketRecipe, is_of_pixels: bool) -> None:
    """Check that buckets suit the data and, for a model on pixels, the levels.

    Args:
        recipe: the recipe.
        is_of_pixels: False for a model on latents, whose sizes in pixels are only known with its autoencoder.

    Raises:
        FieldError: names the field.
    """
    if recipe.images is not None and recipe.images.has_buckets:
        raise FieldError("images.use_aspect_ratio_buckets", "is not possible for the images of a video model.")
    data = recipe.data
    if not data.has_buckets:
        return
    if not data.is_numbered:
        raise FieldError(
            FIELD,
            f"needs data whose sizes can be read before training: use `data.path` instead of `data.{data.place}`.",
        )
    if data.video_column is not None:
        raise FieldError(FIELD, "is for images; clips are cropped to squares: omit it.")
    if recipe.prior_preservation is not None:
        raise FieldError(
            FIELD, "cannot be combined with `prior_preservation`, whose batches mix two sets of images: omit one."
        )
    if is_of_pixels:
        level_buckets(recipe, recipe.stages[-1].levels)


def level_buckets(recipe: BucketRecipe, num_levels: int, factor: int = 1) -> tuple[Size, ...]:
    """Return the buckets (height, width) in pixels of a level, in proportion to those of the outermost trained level.

    Args:
        recipe: the recipe.
        num_levels: the level, as the number of levels up to it.
        factor: pixels per latent along a side.

    Returns:
        The sizes; none if images are cropped to squares.

    Raises:
        FieldError: a size does not suit a level.
    """
    if not recipe.data.has_buckets:
        return ()
    top = recipe.stages[-1].levels
    sides = [side * factor for side in recipe.sides[:top]]
    multiple = LevelGeometry.of(recipe.level_configs[:top]).multiples[-1] * sides[-1] // recipe.sides[0]
    named = recipe.data.aspect_ratio_buckets
    sizes = tuple((high, wide) for high, wide in named) if named else automatic_buckets(sides[-1], multiple)
    for height, width in sizes:
        _check_bucket(height, width, sides, multiple, sizes)
    inner = sides[min(num_levels, top) - 1]
    return tuple((height * inner // sides[-1], width * inner // sides[-1]) for height, width in sizes)


def _check_bucket(height: int, width: int, sides: Sequence[int], multiple: int, sizes: Sequence[Size]) -> None:
    shown, side = f"has {height} x {width} (height x width)", sides[-1]
    if height % multiple or width % multiple:
        raise FieldError(
            FIELD,
            f"{shown}, but both sides must be multiples of {multiple}, so that every level has the same aspect ratio "
            "and all resolutions within the levels have whole sides.",
        )
    if not min(height, width) <= side <= max(height, width):
        raise FieldError(
            FIELD,
            f"{shown}, but the outermost level has {side} pixels: that has to be the larger side, or lie between the "
            f"two, as in buckets with about the area of {side} x {side}.",
        )
    for level, inner in enumerate(sides):
        size = (height * inner // side, width * inner // side)
        if level_of_size(*size, sides, sizes) != level:
            raise FieldError(
                FIELD,
                f"{shown}, which at the level of {inner} pixels is {size[0]} x {size[1]}, the size of another level: "
                "use a ratio closer to 1.",
            )


def automatic_buckets(side: int, multiple: int) -> tuple[Size, ...]:
    """Return sizes with about the area of a square, and sides of at most 2 to 1.

    Args:
        side: side of the square in pixels.
        multiple: the number of which all sides must be multiples.

    Raises:
        FieldError: the square is the only one.
    """
    sizes = set()
    for height in range(multiple, 2 * side, multiple):
        width = max(round(side * side / height / multiple), 1) * multiple
        is_narrow = max(height, width) > LARGEST_RATIO * min(height, width)
        if not is_narrow and min(height, width) <= side <= max(height, width):
            sizes |= {(height, width), (width, height)}
    if len(sizes) < 2:
        raise FieldError(
            "data.use_aspect_ratio_buckets",
            f"finds no size other than {side} x {side} with sides that are multiples of {multiple}: name sizes as "
            "`data.aspect_ratio_buckets`, or crop to squares.",
        )
    return tuple(sorted(sizes))


def most_square(sizes: Sequence[Size]) -> Size:
    """Return the size whose aspect ratio is closest to 1, the first of several."""
    return min(sizes, key=lambda size: abs(math.log(size[0] / size[1])))
