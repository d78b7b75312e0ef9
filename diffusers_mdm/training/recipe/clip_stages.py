# SPDX-License-Identifier: Apache-2.0
"""The levels and the data of each stage of a recipe with clips.

A stage trains on images if it has `as_pictures` (its levels are then as they were before frames are added), or if all
its levels have one frame (nesting in time begins with one frame). Every other stage trains on clips. With
`joint_pictures` it also trains on images, which go through its inner levels, up to the first one that resamples
frames.
"""

import dataclasses
from typing import Protocol

from ...models.level_config import LevelConfig
from ..seeds import derive_seed
from .data import DataRecipe
from .stage import StageRecipe

# Distinguishes the random numbers of images trained on together with clips from those of the clips.
PICTURE_STREAM = 1


class RowsAndData(Protocol):
    """The fields of a `Recipe` that determine on which images and clips its stages train."""

    @property
    def rows(self) -> tuple[LevelConfig, ...]:
        """The level configs, innermost first."""

    @property
    def data(self) -> DataRecipe:
        """The main training data."""

    @property
    def pictures(self) -> DataRecipe | None:
        """The images to train on together with clips."""


def has_clips(recipe: RowsAndData) -> bool:
    """Return whether the recipe's model is a video model."""
    return any(row.num_frames != 1 for row in recipe.rows)


def as_picture_row(row: LevelConfig) -> LevelConfig:
    """Return the config of a level without frames."""
    return dataclasses.replace(row, num_frames=1, temporal_layers_per_block=None, temporal_rotary=False)


def inner_rows(recipe: RowsAndData, num_levels: int, as_pictures: bool = False) -> tuple[LevelConfig, ...]:
    """Return the configs of the inner `num_levels` levels, innermost first; with `as_pictures` without frames."""
    rows = recipe.rows[:num_levels]
    return tuple(map(as_picture_row, rows)) if as_pictures else rows


def stage_rows(recipe: RowsAndData, stage: StageRecipe) -> tuple[LevelConfig, ...]:
    """Return the level configs of the model that a stage trains, innermost first."""
    return inner_rows(recipe, stage.levels, stage.as_pictures)


def stage_frames(recipe: RowsAndData, stage: StageRecipe) -> int:
    """Return the number of frames of a stage's outermost level; 1 for images."""
    return stage_rows(recipe, stage)[-1].num_frames


def trains_on_pictures(recipe: RowsAndData, stage: StageRecipe) -> bool:
    """Return whether a stage trains on images only."""
    return stage_frames(recipe, stage) == 1


def data_of(recipe: RowsAndData, stage: StageRecipe) -> DataRecipe:
    """Return the data of a stage: `pictures`, if there are any, for a stage that trains on images, otherwise
    `data`.
    """
    if recipe.pictures is not None and trains_on_pictures(recipe, stage):
        return recipe.pictures
    return recipe.data


def sources(recipe: RowsAndData) -> tuple[DataRecipe, ...]:
    """Return all data that a recipe names."""
    return (recipe.data,) if recipe.pictures is None else (recipe.data, recipe.pictures)


def picture_levels(rows: tuple[LevelConfig, ...]) -> int:
    """Return how many inner levels of a video model images go through: those before the first that resamples
    frames.
    """
    return next((index for index, row in enumerate(rows) if row.temporal_downsample), len(rows))


def joint_stage(recipe: RowsAndData, stage: StageRecipe) -> StageRecipe | None:
    """Return a stage that trains only on the `joint_pictures` of `stage`, with its own random numbers; None without
    them.

    Raises:
        ValueError: the stage's lists or frozen levels leave nothing to train on these images.
    """
    if not stage.joint_pictures:
        return None
    levels = picture_levels(stage_rows(recipe, stage))

    def inner(column: tuple[float, ...] | None) -> tuple[float, ...] | None:
        return None if column is None else column[:levels]

    return dataclasses.replace(
        stage,
        levels=levels,
        batch_size=stage.joint_pictures,
        level_weights=inner(stage.level_weights),
        batch_fractions=inner(stage.batch_fractions),
        level_learning_rate_scales=inner(stage.level_learning_rate_scales),
        seed=derive_seed(stage.seed, PICTURE_STREAM),
        as_pictures=True,
        joint_pictures=0,
    )
