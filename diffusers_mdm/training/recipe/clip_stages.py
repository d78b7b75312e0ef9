# SPDX-License-Identifier: Apache-2.0
"""The levels and the data of each stage of a recipe with clips.

A stage trains on images if it has `as_images` (its levels are then as they were before frames are added), or if all
its levels have one frame (nesting in time begins with one frame). Every other stage trains on clips. With
`joint_images` it also trains on images, which go through its inner levels, up to the first one that resamples
frames.
"""

import dataclasses
from typing import Protocol

from ...models.level_config import LevelConfig
from ..seeds import derive_seed
from .data import DataRecipe
from .stage import StageRecipe

# Distinguishes the random numbers of images trained on together with clips from those of the clips.
IMAGE_STREAM = 1


class LevelsAndData(Protocol):
    """The fields of a `Recipe` that determine on which images and clips its stages train."""

    @property
    def level_configs(self) -> tuple[LevelConfig, ...]:
        """The level configs, innermost first."""

    @property
    def data(self) -> DataRecipe:
        """The main training data."""

    @property
    def images(self) -> DataRecipe | None:
        """The images to train on together with clips."""


def has_clips(recipe: LevelsAndData) -> bool:
    """Return whether the recipe's model is a video model."""
    return any(level.num_frames != 1 for level in recipe.level_configs)


def without_frames(level_config: LevelConfig) -> LevelConfig:
    """Return the config of a level without frames."""
    return dataclasses.replace(level_config, num_frames=1, temporal_layers_per_block=None, temporal_rotary=False)


def inner_level_configs(recipe: LevelsAndData, num_levels: int, as_images: bool = False) -> tuple[LevelConfig, ...]:
    """Return the configs of the inner `num_levels` levels, innermost first; with `as_images` without frames."""
    level_configs = recipe.level_configs[:num_levels]
    return tuple(map(without_frames, level_configs)) if as_images else level_configs


def stage_level_configs(recipe: LevelsAndData, stage: StageRecipe) -> tuple[LevelConfig, ...]:
    """Return the level configs of the model that a stage trains, innermost first."""
    return inner_level_configs(recipe, stage.levels, stage.as_images)


def stage_frames(recipe: LevelsAndData, stage: StageRecipe) -> int:
    """Return the number of frames of a stage's outermost level; 1 for images."""
    return stage_level_configs(recipe, stage)[-1].num_frames


def trains_on_images(recipe: LevelsAndData, stage: StageRecipe) -> bool:
    """Return whether a stage trains on images only."""
    return stage_frames(recipe, stage) == 1


def data_of(recipe: LevelsAndData, stage: StageRecipe) -> DataRecipe:
    """Return the data of a stage: `images`, if there are any, for a stage that trains on images, otherwise
    `data`.
    """
    if recipe.images is not None and trains_on_images(recipe, stage):
        return recipe.images
    return recipe.data


def sources(recipe: LevelsAndData) -> tuple[DataRecipe, ...]:
    """Return all data that a recipe names."""
    return (recipe.data,) if recipe.images is None else (recipe.data, recipe.images)


def num_image_levels(level_configs: tuple[LevelConfig, ...]) -> int:
    """Return how many inner levels of a video model images go through: those before the first that resamples
    frames.
    """
    return next((index for index, level in enumerate(level_configs) if level.temporal_downsample), len(level_configs))


def joint_stage(recipe: LevelsAndData, stage: StageRecipe) -> StageRecipe | None:
    """Return a stage that trains only on the `joint_images` of `stage`, with its own random numbers; None without
    them.

    Raises:
        ValueError: the stage's lists or frozen levels leave nothing to train on these images.
    """
    if not stage.joint_images:
        return None
    levels = num_image_levels(stage_level_configs(recipe, stage))

    def inner(column: tuple[float, ...] | None) -> tuple[float, ...] | None:
        return None if column is None else column[:levels]

    return dataclasses.replace(
        stage,
        levels=levels,
        batch_size=stage.joint_images,
        level_weights=inner(stage.level_weights),
        batch_fractions=inner(stage.batch_fractions),
        level_learning_rate_scales=inner(stage.level_learning_rate_scales),
        seed=derive_seed(stage.seed, IMAGE_STREAM),
        as_images=True,
        joint_images=0,
    )
