# SPDX-License-Identifier: Apache-2.0
"""Clips in a recipe: what its levels' frames mean for each stage, and which stages cannot follow one another.

A stage trains on pictures if it says so (`as_pictures`: its levels as they are before they have frames), or if all its
levels have one frame (nesting in time begins with one). Every other stage trains on clips; `joint_pictures` stand
beside them and go through its inner levels, up to the first one that resamples frames.
"""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING

from ...models.level_config import LevelConfig
from ..seeds import derive_seed
from .fields import FieldError
from .stage import StageRecipe

if TYPE_CHECKING:
    from .data import DataRecipe
    from .recipe import Recipe

# Distinguishes the random streams of the pictures beside clips from those of the clips.
PICTURE_STREAM = 1


def has_clips(recipe: Recipe) -> bool:
    """Whether the recipe's model is one of clips."""
    return any(row.get("num_frames", 1) != 1 for row in recipe.levels)


def as_picture_row(row: LevelConfig) -> LevelConfig:
    """A level before it has frames."""
    return dataclasses.replace(row, num_frames=1, temporal_layers_per_block=None, temporal_rotary=False)


def inner_rows(recipe: Recipe, num_levels: int, as_pictures: bool = False) -> tuple[LevelConfig, ...]:
    """The rows of the inner `num_levels` levels, innermost first; `as_pictures`: before they have frames."""
    rows = recipe.rows[:num_levels]
    return tuple(map(as_picture_row, rows)) if as_pictures else rows


def stage_rows(recipe: Recipe, stage: StageRecipe) -> tuple[LevelConfig, ...]:
    """The level rows of the model that a stage trains, innermost first."""
    return inner_rows(recipe, stage.levels, stage.as_pictures)


def stage_frames(recipe: Recipe, stage: StageRecipe) -> int:
    """Frames of a stage's outermost level; 1 for pictures."""
    return stage_rows(recipe, stage)[-1].num_frames


def trains_on_pictures(recipe: Recipe, stage: StageRecipe) -> bool:
    """Whether a stage trains on pictures alone."""
    return stage_frames(recipe, stage) == 1


def data_of(recipe: Recipe, stage: StageRecipe) -> DataRecipe:
    """What a stage trains on: `pictures` for stages of pictures, where there are any, otherwise `data`."""
    if recipe.pictures is not None and trains_on_pictures(recipe, stage):
        return recipe.pictures
    return recipe.data


def sources(recipe: Recipe) -> tuple[DataRecipe, ...]:
    """All data that a recipe names."""
    return (recipe.data,) if recipe.pictures is None else (recipe.data, recipe.pictures)


def picture_levels(rows: tuple[LevelConfig, ...]) -> int:
    """Inner levels of a model of clips that pictures go through: those before the first one that resamples frames."""
    return next((index for index, row in enumerate(rows) if row.temporal_downsample), len(rows))


def joint_stage(recipe: Recipe, stage: StageRecipe) -> StageRecipe | None:
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


# --- checks ---


def check_draws_clips(recipe: Recipe) -> None:
    """Refuse a recipe of pictures.

    Raises:
        ValueError: says how a recipe gets clips.
    """
    if not has_clips(recipe):
        raise ValueError(
            f"The recipe {recipe.name!r} makes pictures: set `num_frames` and temporal layers in its `levels`, and "
            "`data.video_column` (see training/recipes/tiny_video.yaml), or train it with "
            "training/train_text_to_image_mdm.py."
        )


def check_draws_pictures(recipe: Recipe) -> None:
    """Refuse a recipe of clips.

    Raises:
        ValueError: says what trains it.
    """
    if has_clips(recipe):
        raise ValueError(
            f"The recipe {recipe.name!r} makes clips, because its levels have `num_frames`: train it with "
            "training/train_text_to_video_mdm.py."
        )


def check_has_classes(recipe: Recipe) -> None:
    """Refuse a recipe without classes, or of clips.

    Raises:
        ValueError: says how a recipe gets them, or what trains it.
    """
    check_draws_pictures(recipe)
    if recipe.model.get("num_class_embeds") is None:
        raise ValueError(
            f"The recipe {recipe.name!r} has no classes: set `model.num_class_embeds` (the number of classes and one "
            "for none of them) and `data.label_column`; recipes of captions alone belong to "
            "training/train_text_to_image_mdm.py."
        )


def check_clips(recipe: Recipe) -> None:
    """Refuse what contradicts itself about clips and pictures.

    Raises:
        FieldError: names the field.
    """
    if not has_clips(recipe):
        _check_without_clips(recipe)
        return
    if recipe.data.video_column is None:
        raise FieldError(
            "data.video_column", "is missing: the levels have frames (`num_frames`), so the data must hold clips."
        )
    if recipe.prior_preservation is not None:
        raise FieldError("prior_preservation", "draws pictures of a class; it does not go with clips.")
    _check_picture_data(recipe)
    _check_order(recipe)


def _check_without_clips(recipe: Recipe) -> None:
    if recipe.pictures is not None:
        raise FieldError(
            "pictures", "go beside clips, but no level has frames (`num_frames`): name the pictures as `data`."
        )
    for position, stage in enumerate(recipe.stages):
        for field in ("as_pictures", "joint_pictures"):
            if getattr(stage, field):
                raise FieldError(
                    f"stages[{position}].{field}",
                    "sets pictures apart from clips, but no level has frames (`num_frames`): leave it out.",
                )


def _check_picture_data(recipe: Recipe) -> None:
    pictures, data = recipe.pictures, recipe.data
    if pictures is None:
        return
    if (pictures.label_column is None) != (data.label_column is None):
        raise FieldError("pictures.label_column", "and `data.label_column` belong together: set both, or neither.")
    if (pictures.embeddings_dir is None) != (data.embeddings_dir is None):
        raise FieldError(
            "pictures.embeddings_dir",
            "and `data.embeddings_dir` belong together: captions come encoded for both, or for neither.",
        )


def _check_order(recipe: Recipe) -> None:
    clips_since, rows = None, recipe.rows
    for position, stage in enumerate(recipe.stages):
        where = f"stages[{position}]"
        reach = picture_levels(rows)
        if stage.as_pictures and stage.levels > reach:
            raise FieldError(
                f"{where}.levels",
                f"is {stage.levels}, but level {reach} resamples frames, which pictures do not have: `as_pictures` "
                f"trains at most {reach}.",
            )
        if stage.as_pictures and clips_since is not None:
            raise FieldError(
                f"{where}.as_pictures",
                f"comes after the stage {clips_since!r}, which trains clips: stages of pictures come first.",
            )
        if not trains_on_pictures(recipe, stage):
            if clips_since is None and position and stage.frozen_levels and rows[0].num_frames > 1:
                raise FieldError(
                    f"{where}.frozen_levels",
                    "would freeze the new layers that connect frames, too: leave it out where pictures become clips.",
                )
            clips_since = clips_since or stage.name
        elif stage.joint_pictures:
            raise FieldError(
                f"{where}.joint_pictures", "stand beside clips, but this stage trains on pictures alone: leave it out."
            )
        if stage.as_pictures and recipe.lora is not None:
            raise FieldError(f"{where}.as_pictures", "grows into clips later, which adapters (`lora`) cannot.")
        if stage.as_pictures:
            check_becomes_clips(rows[: stage.levels])
        _check_joint(recipe, stage, where)


def _check_joint(recipe: Recipe, stage: StageRecipe, where: str) -> None:
    try:
        joint_stage(recipe, stage)
    except ValueError as error:
        raise FieldError(
            f"{where}.joint_pictures",
            f"({stage.joint_pictures} of them, through the levels of one number of frames) does not fit: {error}",
        ) from error


def check_becomes_clips(rows: tuple[LevelConfig, ...]) -> None:
    """Refuse level rows that a model of pictures cannot become by getting frames.

    Args:
        rows: of the model of clips, innermost first, as the model of pictures has.

    Raises:
        FieldError: names the field of the row.
    """
    if all(row.num_frames == 1 for row in rows):
        return
    rotary = {row.temporal_rotary for row in rows if any(row.temporal_layers_per_block or ())}
    if not rotary:
        raise FieldError(
            "levels[0].temporal_layers_per_block",
            "and those of the other levels that start with pictures have no temporal attention, so that frames could "
            "not know of each other; name some.",
        )
    if len(rotary) > 1:
        raise FieldError(
            "levels[0].temporal_rotary",
            "must be the same on all levels with temporal layers that start with pictures.",
        )
    for index, row in enumerate(rows):
        if row.tiled_adapters:
            raise FieldError(
                f"levels[{index}].tiled_adapters", "is for models of clips from the start: pictures are not tiled."
            )
