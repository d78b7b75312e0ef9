# SPDX-License-Identifier: Apache-2.0
"""Convert a checkpoint of the published MDM implementation (Apple's ml-mdm) to a diffusers folder.

    python conversion/convert_apple_mdm_to_diffusers.py --checkpoint_path vis_model.pth \
        --config_path cc12m_64x64.yaml --output_dir mdm-64 --text_encoder google/flan-t5-xl

Nothing in the checkpoint is executed. The folder appears only after it was written, loaded again and compared.
"""

PARSES_FIRST = True  # see diffusers_mdm/__init__.py

import argparse
import sys
from typing import Any

from diffusers_mdm.conversion.command_line import add_folder_arguments, run_command


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    """Return the parsed command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("--checkpoint_path", required=True, help="vis_model.pth, as the published trainer writes it")
    parser.add_argument(
        "--config_path",
        help="the model's YAML config; can be omitted if the checkpoint contains the trainer's arguments",
    )
    parser.add_argument(
        "--state_dict_key",
        help="which weights to take from a checkpoint that has several, e.g. ema (the error message lists them)",
    )
    add_folder_arguments(parser)
    return parser.parse_args(argv)


def read(args: argparse.Namespace) -> Any:
    """Convert in memory."""
    from diffusers_mdm.conversion.apple_mdm import convert_apple_checkpoint

    return convert_apple_checkpoint(args.checkpoint_path, args.config_path, args.level, args.state_dict_key)


def main(argv: list[str] | None = None) -> int:
    """Run the command; return its exit code."""
    args = parse_args(argv)
    from diffusers_mdm import MDMPipeline
    from diffusers_mdm.conversion.apple_mdm import UNUSED_FILE
    from diffusers_mdm.conversion.folder_command import convert_to_folder

    return run_command(lambda: convert_to_folder(args, read, MDMPipeline, UNUSED_FILE), args.output_dir)


if __name__ == "__main__":
    sys.exit(main())
