# SPDX-License-Identifier: Apache-2.0
"""The training commands: what sets one apart from the other."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ..recipe.recipe import Recipe


@dataclasses.dataclass(frozen=True)
class CommandKind:
    """What sets a training command apart from the others.

    Attributes:
        description: what its `--help` begins with.
        check: raises a ValueError for a recipe that another command trains.
        defaults: values of flags that are not given.
        fine_tuning_defaults: further ones, where there is no --recipe.
    """

    description: str
    check: Callable[[Recipe], None]
    defaults: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    fine_tuning_defaults: Mapping[str, Any] = dataclasses.field(default_factory=dict)


def check_draws_clips(recipe: Recipe) -> None:
    """Refuse a recipe of pictures.

    Raises:
        ValueError: says how a recipe gets clips.
    """
    if not _has_clips(recipe):
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
    if _has_clips(recipe):
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


def _has_clips(recipe: Recipe) -> bool:
    return any(row.num_frames != 1 for row in recipe.rows)


TEXT_TO_IMAGE = CommandKind(
    description="""\
Train a Matryoshka diffusion model from captioned pictures, stage by stage from the inside out (--recipe), or
fine-tune a saved pipeline (--pretrained_model_name_or_path): wholly, with LoRA (--rank), or on one subject
(--instance_data_dir). Repeating the command resumes from its newest checkpoint. Flags have the names and meanings of
diffusers' training scripts; switches can also be given as --no-<name>.
""",
    check=check_draws_pictures,
)

CLASS_CONDITIONAL = CommandKind(
    description="""\
Train a Matryoshka diffusion model of classes, stage by stage from the inside out (--recipe), or fine-tune a saved one
(--pretrained_model_name_or_path), wholly or with LoRA (--rank). --label_column (without a recipe by default "label")
holds whole numbers; a ClassLabel column gives the classes their names, which are saved with the pipeline.
--validation_prompts are names or numbers of classes. Repeating the command resumes from its newest checkpoint. Flags
have the names and meanings of diffusers' training scripts; switches can also be given as --no-<name>.
""",
    check=check_has_classes,
    defaults={"tracker_project_name": "class2image-mdm"},
    fine_tuning_defaults={"label_column": "label"},
)


TEXT_TO_VIDEO = CommandKind(
    description="""\
Train a Matryoshka diffusion model of clips, stage by stage from pictures to clips and from the inside out (--recipe),
or fine-tune a saved one (--pretrained_model_name_or_path), wholly or with LoRA (--rank); with --num_frames a pipeline
of pictures becomes one of clips. --video_column (without a recipe by default "video") holds the clips. Repeating the
command resumes from its newest checkpoint. Flags have the names and meanings of diffusers' training scripts; switches
can also be given as --no-<name>.
""",
    check=check_draws_clips,
    defaults={"tracker_project_name": "text2video-mdm"},
    fine_tuning_defaults={"video_column": "video"},
)
