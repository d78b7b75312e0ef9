# SPDX-License-Identifier: Apache-2.0
"""Clips in a recipe: what its levels' frames mean for each stage, and which data each stage trains on.

A stage trains on pictures if it says so (`as_pictures`: its levels as they are before they have frames), or if all its
levels have one frame (nesting in time begins with one). Every other stage trains on clips; `joint_pictures` stand
beside them and go through its inner levels, up to the first one that resamples frames.
"""

import dataclasses
from typing import Protocol

from ...models.level_config import LevelConfig
from ..seeds import derive_seed
from .data import DataRecipe
from .stage import StageRecipe

# Distinguishes the random streams of the pictures beside clips from those of the clips.
PICTURE_STREAM = 1


class RowsAndData(Protocol):
    """What of a `Recipe` says on which pictures and clips its stages train."""

    @property
    def rows(self) -> tuple[LevelConfig, ...]:
        """The level rows, innermost first."""

    @property
    def data(self) -> DataRecipe:
        """What is trained on."""

    @property
    def pictures(self) -> DataRecipe | None:
        """Pictures beside the clips."""


def has_clips(recipe: RowsAndData) -> bool:
    """Whether the recipe's model is one of clips."""
    return any(row.num_frames != 1 for row in recipe.rows)


def as_picture_row(row: LevelConfig) -> LevelConfig:
    """A level before it has frames."""
    return dataclasses.replace(row, num_frames=1, temporal_layers_per_block=None, temporal_rotary=False)


def inner_rows(recipe: RowsAndData, num_levels: int, as_pictures: bool = False) -> tuple[LevelConfig, ...]:
    """The rows of the inner `num_levels` levels, innermost first; `as_pictures`: before they have frames."""
    rows = recipe.rows[:num_levels]
    return tuple(map(as_picture_row, rows)) if as_pictures else rows


def stage_rows(recipe: RowsAndData, stage: StageRecipe) -> tuple[LevelConfig, ...]:
    """The level rows of the model that a stage trains, innermost first."""
    return inner_rows(recipe, stage.levels, stage.as_pictures)


def stage_frames(recipe: RowsAndData, stage: StageRecipe) -> int:
    """Frames of a stage's outermost level; 1 for pictures."""
    return stage_rows(recipe, stage)[-1].num_frames


def trains_on_pictures(recipe: RowsAndData, stage: StageRecipe) -> bool:
    """Whether a stage trains on pictures alone."""
    return stage_frames(recipe, stage) == 1


def data_of(recipe: RowsAndData, stage: StageRecipe) -> DataRecipe:
    """What a stage trains on: `pictures` for stages of pictures, where there are any, otherwise `data`."""
    if recipe.pictures is not None and trains_on_pictures(recipe, stage):
        return recipe.pictures
    return recipe.data


def sources(recipe: RowsAndData) -> tuple[DataRecipe, ...]:
    """All data that a recipe names."""
    return (recipe.data,) if recipe.pictures is None else (recipe.data, recipe.pictures)


def picture_levels(rows: tuple[LevelConfig, ...]) -> int:
    """Inner levels of a model of clips that pictures go through: those before the first one that resamples frames."""
    return next((index for index, row in enumerate(rows) if row.temporal_downsample), len(rows))


def joint_stage(recipe: RowsAndData, stage: StageRecipe) -> StageRecipe | None:
    """The stage that its `joint_pictures` would be by themselves, with random streams of their own; None without.

    Raises:
        ValueError: the stage's lists or frozen levels leave the pictures nothing.
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
