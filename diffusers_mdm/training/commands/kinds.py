# SPDX-License-Identifier: Apache-2.0
"""The training commands, one per kind of model, and how they differ."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ..recipe.recipe import Recipe


@dataclasses.dataclass(frozen=True)
class CommandKind:
    """One of the training commands.

    Attributes:
        description: the beginning of its `--help`.
        check: raises a ValueError for a recipe that belongs to another command.
        defaults: values of flags that are not given.
        fine_tuning_defaults: further defaults if there is no --recipe.
    """

    description: str
    check: Callable[[Recipe], None]
    defaults: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    fine_tuning_defaults: Mapping[str, Any] = dataclasses.field(default_factory=dict)


def check_draws_clips(recipe: Recipe) -> None:
    """Refuse a recipe for images.

    Raises:
        ValueError: says how to make it a recipe for clips.
    """
    if not _has_clips(recipe):
        raise ValueError(
            f"The recipe {recipe.name!r} is for an image model: set `num_frames` and temporal layers in its "
            f"`levels`, and "
            "`data.video_column` (see training/recipes/tiny_video.yaml), or train it with "
            "`diffusers-mdm train text-to-image` (training/train_text_to_image_mdm.py)."
        )


def check_draws_images(recipe: Recipe) -> None:
    """Refuse a recipe for clips.

    Raises:
        ValueError: names the command for it.
    """
    if _has_clips(recipe):
        raise ValueError(
            f"The recipe {recipe.name!r} is for a video model, because its levels have `num_frames`: train it with "
            "`diffusers-mdm train text-to-video` (training/train_text_to_video_mdm.py)."
        )


def check_has_classes(recipe: Recipe) -> None:
    """Refuse a recipe without classes, or for clips.

    Raises:
        ValueError: says how to add classes, or names the command for it.
    """
    check_draws_images(recipe)
    if recipe.model.get("num_class_embeds") is None:
        raise ValueError(
            f"The recipe {recipe.name!r} has no classes: set `model.num_class_embeds` (the number of classes plus "
            f"one for none) and `data.label_column`; use `diffusers-mdm train text-to-image` "
            f"(training/train_text_to_image_mdm.py) for recipes with captions."
        )


def check_has_no_conditions(recipe: Recipe) -> None:
    """Refuse a recipe for clips, or with text or classes.

    Raises:
        ValueError: names the command for it.
    """
    check_draws_images(recipe)
    if recipe.model.get("num_class_embeds") is not None:
        raise ValueError(
            f"The recipe {recipe.name!r} has classes (`model.num_class_embeds`): train it with `diffusers-mdm train "
            "class-conditional` (training/train_class_conditional_mdm.py)."
        )
    if recipe.model.get("cross_attention_dim") is not None:
        raise ValueError(
            f"The recipe {recipe.name!r} has captions: omit `model.cross_attention_dim` and `text_encoder`, or train "
            "it with `diffusers-mdm train text-to-image` (training/train_text_to_image_mdm.py)."
        )


def _has_clips(recipe: Recipe) -> bool:
    return any(level.num_frames != 1 for level in recipe.level_configs)


TEXT_TO_IMAGE = CommandKind(
    description="""\
Train a Matryoshka diffusion model on captioned images, stage by stage from the inside out (--recipe), or
fine-tune a saved pipeline (--pretrained_model_name_or_path): all weights, a LoRA (--rank), or on one subject
(--instance_data_dir). Repeating the command resumes from its newest checkpoint. Flags have the names and meanings of
diffusers' training scripts; switches can also be given as --no-<name>.
""",
    check=check_draws_images,
)

CLASS_CONDITIONAL = CommandKind(
    description="""\
Train a class-conditional Matryoshka diffusion model, stage by stage from the inside out (--recipe), or fine-tune a
saved one (--pretrained_model_name_or_path), all weights or a LoRA (--rank). --label_column (without a recipe by
default "label") names a column of whole numbers; if it is a ClassLabel, the class names are saved with the pipeline.
--validation_prompts are class names or numbers. Repeating the command resumes from its newest checkpoint. Flags
have the names and meanings of diffusers' training scripts; switches can also be given as --no-<name>.
""",
    check=check_has_classes,
    defaults={"tracker_project_name": "class2image-mdm"},
    fine_tuning_defaults={"label_column": "label"},
)


UNCONDITIONAL = CommandKind(
    description="""\
Train an unconditional Matryoshka diffusion model on images without captions or classes, such as a folder of images
(--train_data_dir), stage by stage from the inside out (--recipe), or fine-tune a saved one
(--pretrained_model_name_or_path), all weights or a LoRA (--rank). Validation samples need no prompts:
--num_validation_images (or --eval_batch_size) is their number. Repeating the command resumes from its newest
checkpoint. Flags have the names and meanings of diffusers' training scripts, those of train_unconditional.py included;
switches can also be given as --no-<name>.
""",
    check=check_has_no_conditions,
    defaults={"tracker_project_name": "unconditional-mdm"},
)


TEXT_TO_VIDEO = CommandKind(
    description="""\
Train a Matryoshka diffusion model for video, stage by stage from images to clips and from the inside out (--recipe),
or fine-tune a saved one (--pretrained_model_name_or_path), all weights or a LoRA (--rank); with --num_frames an image
pipeline becomes a video pipeline. --video_column (without a recipe by default "video") names the column with the
clips. Repeating the command resumes from its newest checkpoint. Flags have the names and meanings of diffusers'
training scripts; switches can also be given as --no-<name>.
""",
    check=check_draws_clips,
    defaults={"tracker_project_name": "text2video-mdm"},
    fine_tuning_defaults={"video_column": "video"},
)
