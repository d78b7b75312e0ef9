# SPDX-License-Identifier: Apache-2.0
"""Convert weights of the MDM community pipeline in diffusers' examples to a pipeline folder of this package.

    python conversion/convert_community_mdm_to_diffusers.py --model_path community-folder --output_dir mdm-64

`--model_path` is a U-Net folder (config.json and safetensors) or a pipeline folder that has one.
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
    parser.add_argument("--model_path", required=True, help="local U-Net folder, or pipeline folder with unet/")
    add_folder_arguments(parser)
    parser.add_argument(
        "--shift_power",
        type=float,
        help="exponent of the noise shift, which that format does not store (default: 2 for three levels, else 1)",
    )
    return parser.parse_args(argv)


def read(args: argparse.Namespace) -> Any:
    """Convert in memory."""
    from diffusers_mdm.conversion.community_mdm import convert_community_checkpoint

    return convert_community_checkpoint(args.model_path, args.shift_power, num_levels=args.level)


def main(argv: list[str] | None = None) -> int:
    """Run the command; return its exit code."""
    args = parse_args(argv)
    from diffusers_mdm import MDMPipeline
    from diffusers_mdm.conversion.folder_command import convert_to_folder

    return run_command(lambda: convert_to_folder(args, read, MDMPipeline), args.output_dir)


if __name__ == "__main__":
    sys.exit(main())
