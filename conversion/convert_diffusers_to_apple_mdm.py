# SPDX-License-Identifier: Apache-2.0
"""Convert a model of this package back to a checkpoint of the published implementation (Apple's ml-mdm).

    python conversion/convert_diffusers_to_apple_mdm.py --model_path mdm-64 --output_path vis_model.pth

The exact inverse of `convert_apple_mdm_to_diffusers.py`, tensor by tensor. The file contains only tensors and a
counter, so that `torch.load(weights_only=True)` can read it; the config to go with it is the YAML that the model came
with.
"""

PARSES_FIRST = True  # see diffusers_mdm/__init__.py

import argparse
import sys

from diffusers_mdm.conversion.command_line import run_command


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    """Return the parsed command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("--model_path", required=True, help="local model folder, or pipeline folder with unet/")
    parser.add_argument("--output_path", required=True, help=".pth file to write; must not exist yet")
    parser.add_argument("--variant", help="which variant of the weights to read, e.g. fp16")
    parser.add_argument("--batch_num", type=int, default=0, help="training step stored in the file (default: 0)")
    return parser.parse_args(argv)


def convert(args: argparse.Namespace) -> None:
    """Convert a model according to the command line."""
    from diffusers_mdm.conversion.apple_mdm import read_converted, to_apple_state_dict
    from diffusers_mdm.conversion.write_pipeline import check_output_is_new, write_checkpoint

    check_output_is_new(args.output_path)
    unet, unused = read_converted(args.model_path, args.variant)
    state_dict = to_apple_state_dict(unet.state_dict(), unused)
    write_checkpoint(args.output_path, {"state_dict": state_dict, "batch_num": args.batch_num})


def main(argv: list[str] | None = None) -> int:
    """Run the command; return its exit code."""
    args = parse_args(argv)
    return run_command(lambda: convert(args), args.output_path)


if __name__ == "__main__":
    sys.exit(main())
