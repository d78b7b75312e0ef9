# SPDX-License-Identifier: Apache-2.0
"""Which settings of clips contradict each other in a recipe, and which stages cannot follow one another."""

from typing import Protocol

from ...models.level_config import LevelConfig
from .clip_rows import RowsAndData, has_clips, joint_stage, picture_levels, trains_on_pictures
from .fields import FieldError
from .pretrained import LoraRecipe, PriorRecipe
from .stage import StageRecipe


class ClipRecipe(RowsAndData, Protocol):
    """What of a `Recipe` is checked here."""

    @property
    def stages(self) -> tuple[StageRecipe, ...]:
        """From the inside out."""

    @property
    def lora(self) -> LoraRecipe | None:
        """Adapters, if they are trained alone."""

    @property
    def prior_preservation(self) -> PriorRecipe | None:
        """Pictures of a subject's class."""


def check_clips(recipe: ClipRecipe) -> None:
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


def _check_without_clips(recipe: ClipRecipe) -> None:
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


def _check_picture_data(recipe: ClipRecipe) -> None:
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


def _check_order(recipe: ClipRecipe) -> None:
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


def _check_joint(recipe: ClipRecipe, stage: StageRecipe, where: str) -> None:
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
