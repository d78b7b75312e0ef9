# SPDX-License-Identifier: Apache-2.0
"""The group `diffusers-mdm train`: one command per kind of model."""

import argparse
from collections.abc import Sequence
from dataclasses import dataclass

from ...training.commands.kinds import CLASS_CONDITIONAL, TEXT_TO_IMAGE, TEXT_TO_VIDEO, UNCONDITIONAL, CommandKind
from ...training.commands.parser import build_parser
from ...training.commands.run_command import run_command
from ..command import Command, CommandGroup


@dataclass(frozen=True)
class Training:
    """A training command with the flags of the script for its kind.

    Attributes:
        kind: what it trains.
        example: arguments, to show in its help.
    """

    kind: CommandKind
    example: str

    def build_parser(self, program: str) -> argparse.ArgumentParser:
        """Return the parser; flags that are not given are absent from its result."""
        return build_parser(f"{self.kind.description}\nexample:\n  {program} {self.example}\n", program)

    def run(self, program: str, arguments: Sequence[str]) -> int:
        """Describe or run the training; user errors end the program."""
        if "-h" in arguments or "--help" in arguments:
            self.build_parser(program).print_help()
            return 0
        run_command(self.kind, arguments, program)
        return 0


text_to_image = Training(
    TEXT_TO_IMAGE,
    "--pretrained_model_name_or_path model --train_data_dir pictures --max_train_steps 1000 --output_dir my-model",
)
class_conditional = Training(
    CLASS_CONDITIONAL,
    "--pretrained_model_name_or_path model --train_data_dir pictures --max_train_steps 1000 --output_dir my-model",
)
unconditional = Training(
    UNCONDITIONAL,
    "--pretrained_model_name_or_path model --train_data_dir pictures --max_train_steps 1000 --output_dir my-model",
)
text_to_video = Training(
    TEXT_TO_VIDEO,
    "--pretrained_model_name_or_path model --num_frames 16 --train_data_dir clips --max_train_steps 1000 "
    "--output_dir my-video",
)

TRAIN = CommandGroup(
    """\
Train a model stage by stage from the inside out, from a recipe, or fine-tune a saved one.

  diffusers-mdm train text-to-image --recipe my-recipe.yaml --output_dir my-model
  diffusers-mdm train text-to-image --pretrained_model_name_or_path my-model --train_data_dir pictures \\
      --max_train_steps 1000 --output_dir my-other-model

--recipe takes a file, or the name of a recipe that comes with the package: tiny, cc12m_64, imagenet_64, …
For several processes, put `accelerate launch -m diffusers_mdm` in place of `diffusers-mdm`.
""",
    (
        Command("text-to-image", "train on captioned images", "training.train:text_to_image"),
        Command("class-conditional", "train on images with classes", "training.train:class_conditional"),
        Command("unconditional", "train on images without captions", "training.train:unconditional"),
        Command("text-to-video", "train on captioned clips", "training.train:text_to_video"),
        Command("autoencoder", "train a small autoencoder, for models on latents", "training.autoencoder"),
    ),
)
