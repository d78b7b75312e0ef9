# SPDX-License-Identifier: Apache-2.0
"""Convert weights of the MDM community pipeline of the diffusers examples to a folder of this package.

    python conversion/convert_community_mdm_to_diffusers.py --model_path community-folder --output_dir mdm-64

`--model_path` is a U-Net folder (config.json and safetensors) or a pipeline folder that has one.
"""

import argparse
import sys

from diffusers_mdm.conversion.community_mdm import convert_community_checkpoint
from diffusers_mdm.conversion.write_pipeline import DTYPES, assemble_pipeline, check_output_is_new, write_model


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    """Return the parsed command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("--model_path", required=True, help="local U-Net folder, or pipeline folder with unet/")
    parser.add_argument("--output_dir", required=True, help="folder to make; must not exist")
    parser.add_argument(
        "--text_encoder",
        help="folder or Hub id of the text encoder; makes a complete pipeline (without it: unet/ and scheduler/)",
    )
    parser.add_argument("--dtype", choices=sorted(DTYPES), help="save in this dtype (default: the weights' own)")
    parser.add_argument("--level", type=int, help="keep only this many levels, counted from the innermost")
    parser.add_argument(
        "--shift_power",
        type=float,
        help="exponent of the noise shift, which that format does not save (default: 2 for three levels, else 1)",
    )
    return parser.parse_args(argv)


def convert(args: argparse.Namespace) -> None:
    """Convert as the command line says."""
    check_output_is_new(args.output_dir)
    converted = convert_community_checkpoint(args.model_path, args.shift_power, num_levels=args.level)
    unet = converted.unet.to(DTYPES[args.dtype]) if args.dtype else converted.unet
    make_pipeline = None
    if args.text_encoder:
        from diffusers_mdm.pipelines.pipeline_mdm import MDMPipeline

        def make_pipeline(unet, scheduler):
            return assemble_pipeline(MDMPipeline, unet, scheduler, args.text_encoder, unet.dtype)

    write_model(args.output_dir, unet, converted.scheduler, make_pipeline=make_pipeline)


def main(argv: list[str] | None = None) -> int:
    """Run the command; return its exit code."""
    args = parse_args(argv)
    try:
        convert(args)
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    print(f"Wrote {args.output_dir}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
