# SPDX-License-Identifier: Apache-2.0
"""The training commands: what sets one apart from the other, and how each is run."""

import dataclasses
import logging
import sys
from collections.abc import Sequence
from pathlib import Path

from ..loop.engine import resolve_recipe, run_recipe
from ..loop.interruption import RunInterrupted
from ..modules.classes import num_class_embeds
from ..processes import OtherProcessEnded, is_main_launched, num_launched
from ..recipe.clips import check_draws_clips, check_draws_pictures
from ..recipe.recipe import Recipe
from ..state.checkpoints import WRITE_ERRORS
from .dry_run import describe_run
from .flags import TEXT_TO_IMAGE, CommandKind, read_command
from .messages import one_line, resume_command

__all__ = ["CLASS_CONDITIONAL", "TEXT_TO_IMAGE", "TEXT_TO_VIDEO", "run_command"]


def check_has_classes(recipe: Recipe) -> None:
    """Refuse a recipe without classes, or of clips.

    Raises:
        ValueError: says how a recipe gets them, or what trains it.
    """
    check_draws_pictures(recipe)
    if num_class_embeds(recipe) is None:
        raise ValueError(
            f"The recipe {recipe.name!r} has no classes: set `model.num_class_embeds` (the number of classes and one "
            "for none of them) and `data.label_column`; recipes of captions alone belong to "
            "training/train_text_to_image_mdm.py."
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


def run_command(kind: CommandKind = TEXT_TO_IMAGE, arguments: Sequence[str] | None = None) -> None:
    """Parse, then print or run; what the user can mend ends with one line instead of a traceback.

    Args:
        kind: which command it is.
        arguments: its words; by default those of this program.
    """
    arguments = sys.argv[1:] if arguments is None else arguments
    recipe, options, is_dry_run = read_command(arguments, kind)
    options = dataclasses.replace(options, resume_command=resume_command(arguments))
    is_main = is_main_launched()
    level = logging.INFO if is_main else logging.WARNING
    logging.basicConfig(level=level, format="%(asctime)s %(message)s", datefmt="%H:%M:%S")
    try:
        if is_dry_run:
            print(describe_run(resolve_recipe(recipe, options), options, num_launched()))
        else:
            run_recipe(recipe, options)
    except RunInterrupted as interruption:
        # The run has been asked to stop, and has saved what it knows: that is a success.
        if is_main:
            print(interruption)
    except (ValueError, FloatingPointError, OtherProcessEnded, *WRITE_ERRORS) as error:
        sys.exit(f"{Path(sys.argv[0]).name}: error: {one_line(error)}")
