# SPDX-License-Identifier: Apache-2.0
"""The group `diffusers-mdm convert` and the scripts in `conversion/`: one converter per foreign format."""

import argparse
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from ..command_parsing import command_parser
from ..conversion.command_line import add_folder_arguments, run_command
from .command import Command, CommandGroup


@dataclass(frozen=True)
class Converter:
    """A conversion command.

    Attributes:
        description: what it does, and an example, with {0} for the name of the program.
        add_arguments: adds its flags to a parser.
        convert: converts as the flags say.
        output: the flag with the place of the result.
    """

    description: str
    add_arguments: Callable[[argparse.ArgumentParser], None]
    convert: Callable[[argparse.Namespace], None]
    output: str

    def build_parser(self, program: str) -> argparse.ArgumentParser:
        """Return the parser."""
        parser = command_parser(program, self.description.format(program))
        self.add_arguments(parser)
        return parser

    def run(self, program: str, arguments: Sequence[str]) -> int:
        """Convert, or print a user error in one line and leave no output; return the exit code."""
        args = self.build_parser(program).parse_args(arguments)
        return run_command(lambda: self.convert(args), getattr(args, self.output), program)


def _add_apple(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--checkpoint_path",
        metavar="FILE",
        required=True,
        help="vis_model.pth, as the published trainer writes it",
    )
    parser.add_argument(
        "--config_path",
        metavar="FILE",
        help="the model's YAML config; can be omitted if the checkpoint contains the trainer's arguments",
    )
    parser.add_argument(
        "--state_dict_key",
        metavar="NAME",
        help="which weights to take from a checkpoint that has several, e.g. ema (the error message lists them)",
    )
    add_folder_arguments(parser)


def _convert_apple(args: argparse.Namespace) -> None:
    from ..conversion.apple_mdm import UNUSED_FILE, convert_apple_checkpoint
    from ..conversion.folder_command import convert_to_folder
    from ..public_names import MDMPipeline

    def read(args: argparse.Namespace) -> Any:
        return convert_apple_checkpoint(args.checkpoint_path, args.config_path, args.level, args.state_dict_key)

    convert_to_folder(args, read, MDMPipeline, UNUSED_FILE)


def _add_community(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--model_path", metavar="FOLDER", required=True, help="local U-Net folder, or pipeline folder with unet/"
    )
    add_folder_arguments(parser)
    parser.add_argument(
        "--shift_power",
        type=float,
        metavar="P",
        help="exponent of the noise shift, which that format does not store (default: 2 for three levels, else 1)",
    )


def _convert_community(args: argparse.Namespace) -> None:
    from ..conversion.community_mdm import convert_community_checkpoint
    from ..conversion.folder_command import convert_to_folder
    from ..public_names import MDMPipeline

    def read(args: argparse.Namespace) -> Any:
        return convert_community_checkpoint(args.model_path, args.shift_power, num_levels=args.level)

    convert_to_folder(args, read, MDMPipeline)


def _add_to_apple(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--model_path", metavar="FOLDER", required=True, help="local model folder, or pipeline folder with unet/"
    )
    parser.add_argument("--output_path", metavar="FILE", required=True, help=".pth file to write; must not exist yet")
    parser.add_argument("--variant", metavar="NAME", help="which variant of the weights to read, e.g. fp16")
    parser.add_argument(
        "--batch_num", metavar="N", type=int, default=0, help="training step stored in the file (default: 0)"
    )


def _convert_to_apple(args: argparse.Namespace) -> None:
    from ..conversion.apple_mdm import read_converted, to_apple_state_dict
    from ..conversion.write_pipeline import check_output_is_new, write_checkpoint

    check_output_is_new(args.output_path)
    unet, unused = read_converted(args.model_path, args.variant)
    state_dict = to_apple_state_dict(unet.state_dict(), unused)
    write_checkpoint(args.output_path, {"state_dict": state_dict, "batch_num": args.batch_num})


apple = Converter(
    """\
Convert a checkpoint of the published MDM implementation (Apple's ml-mdm) to a diffusers folder.

  {0} --checkpoint_path vis_model.pth --config_path cc12m_64x64.yaml \\
      --output_dir mdm-64 --text_encoder google/flan-t5-xl

Nothing in the checkpoint is executed. The folder appears only after it was written, loaded again and compared.
""",
    _add_apple,
    _convert_apple,
    "output_dir",
)
community = Converter(
    """\
Convert weights of the MDM community pipeline in diffusers' examples to a pipeline folder of this package.

  {0} --model_path community-folder --output_dir mdm-64

--model_path is a U-Net folder (config.json and safetensors) or a pipeline folder that has one.
""",
    _add_community,
    _convert_community,
    "output_dir",
)
to_apple = Converter(
    """\
Convert a model of this package back to a checkpoint of the published implementation (Apple's ml-mdm).

  {0} --model_path mdm-64 --output_path vis_model.pth

The exact inverse of converting from there, tensor by tensor. The file contains only tensors and a counter, so that
`torch.load(weights_only=True)` can read it; the config to go with it is the YAML that the model came with.
""",
    _add_to_apple,
    _convert_to_apple,
    "output_path",
)

CONVERT = CommandGroup(
    """\
Convert checkpoints of other implementations of MDM, and back. Nothing in a checkpoint is executed.

  diffusers-mdm convert apple --checkpoint_path vis_model.pth --config_path cc12m_64x64.yaml --output_dir mdm-64
""",
    (
        Command("apple", "from the published implementation (ml-mdm) to a diffusers folder", "convert:apple"),
        Command("community", "from diffusers' community pipeline to a diffusers folder", "convert:community"),
        Command("to-apple", "from a diffusers folder to a checkpoint of ml-mdm", "convert:to_apple"),
    ),
)
