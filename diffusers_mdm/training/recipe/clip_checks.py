# SPDX-License-Identifier: Apache-2.0
"""Checks of the settings for clips in a recipe, and of the order of its stages."""

from typing import Protocol

from ...models.level_config import LevelConfig
from .clip_stages import LevelsAndData, has_clips, joint_stage, num_image_levels, trains_on_images
from .fields import FieldError
from .pretrained import LoraRecipe, PriorRecipe
from .stage import StageRecipe


class ClipRecipe(LevelsAndData, Protocol):
    """The fields of a `Recipe` that are checked here."""

    @property
    def stages(self) -> tuple[StageRecipe, ...]:
        """From the inside out."""

    @property
    def lora(self) -> LoraRecipe | None:
        """LoRA adapters, if only they are trained."""

    @property
    def prior_preservation(self) -> PriorRecipe | None:
        """Prior preservation for a subject."""


def check_clips(recipe: ClipRecipe) -> None:
    """Check that the settings for clips and images do not contradict each other.

    Raises:
        FieldError: names the field.
    """
    if not has_clips(recipe):
        _check_without_clips(recipe)
        return
    if recipe.data.video_column is None:
        raise FieldError(
            "data.video_column", "is missing: the levels have frames (`num_frames`), so the data must be clips."
        )
    if recipe.prior_preservation is not None:
        raise FieldError("prior_preservation", "needs images of a class; it cannot be used with clips.")
    _check_image_data(recipe)
    _check_order(recipe)


def _check_without_clips(recipe: ClipRecipe) -> None:
    if recipe.images is not None:
        raise FieldError(
            "images",
            "is for training on images together with clips, but no level has frames (`num_frames`): "
            "use `data` instead.",
        )
    for position, stage in enumerate(recipe.stages):
        for field in ("as_images", "joint_images"):
            if getattr(stage, field):
                raise FieldError(
                    f"stages[{position}].{field}",
                    "is for training on images together with clips, but no level has frames (`num_frames`): omit it.",
                )


def _check_image_data(recipe: ClipRecipe) -> None:
    images, data = recipe.images, recipe.data
    if images is None:
        return
    if (images.label_column is None) != (data.label_column is None):
        raise FieldError("images.label_column", "and `data.label_column` belong together: set both, or neither.")
    if (images.embeddings_dir is None) != (data.embeddings_dir is None):
        raise FieldError(
            "images.embeddings_dir",
            "and `data.embeddings_dir` belong together: set both, or neither.",
        )


def _check_order(recipe: ClipRecipe) -> None:
    clips_since, level_configs = None, recipe.level_configs
    for position, stage in enumerate(recipe.stages):
        where = f"stages[{position}]"
        reach = num_image_levels(level_configs)
        if stage.as_images and stage.levels > reach:
            raise FieldError(
                f"{where}.levels",
                f"is {stage.levels}, but level {reach} resamples frames, which images do not have: a stage with "
                f"`as_images` trains at most {reach} levels.",
            )
        if stage.as_images and clips_since is not None:
            raise FieldError(
                f"{where}.as_images",
                f"comes after the stage {clips_since!r}, which trains on clips: stages that train on images must "
                f"come first.",
            )
        if not trains_on_images(recipe, stage):
            if clips_since is None and position and stage.frozen_levels and level_configs[0].num_frames > 1:
                raise FieldError(
                    f"{where}.frozen_levels",
                    "would also freeze the new temporal layers: omit it in the stage that goes from images to clips.",
                )
            clips_since = clips_since or stage.name
        elif stage.joint_images:
            raise FieldError(
                f"{where}.joint_images", "adds images to clips, but this stage trains on images only: omit it."
            )
        if stage.as_images and recipe.lora is not None:
            raise FieldError(
                f"{where}.as_images",
                "is followed by stages on clips, but frames cannot be added to a model with adapters (`lora`).",
            )
        if stage.as_images:
            check_becomes_clips(level_configs[: stage.levels])
        _check_joint(recipe, stage, where)


def _check_joint(recipe: ClipRecipe, stage: StageRecipe, where: str) -> None:
    try:
        joint_stage(recipe, stage)
    except ValueError as error:
        raise FieldError(
            f"{where}.joint_images",
            f"({stage.joint_images} of them, through the levels of one number of frames) does not fit: {error}",
        ) from error


def check_becomes_clips(level_configs: tuple[LevelConfig, ...]) -> None:
    """Check that an image model can become these video levels by adding frames.

    Args:
        level_configs: configs of the video model's levels that the image model has too, innermost first.

    Raises:
        FieldError: names the field of the level.
    """
    if all(level.num_frames == 1 for level in level_configs):
        return
    rotary = {level.temporal_rotary for level in level_configs if any(level.temporal_layers_per_block or ())}
    if not rotary:
        raise FieldError(
            "levels[0].temporal_layers_per_block",
            "and those of the other levels that start with images have no temporal attention, so frames could not "
            "exchange information; set some.",
        )
    if len(rotary) > 1:
        raise FieldError(
            "levels[0].temporal_rotary",
            "must be the same on all levels with temporal layers that start with images.",
        )
    for index, level_config in enumerate(level_configs):
        if level_config.tiled_adapters:
            raise FieldError(
                f"levels[{index}].tiled_adapters",
                "is for models that are trained on clips from the start: images are not tiled.",
            )
