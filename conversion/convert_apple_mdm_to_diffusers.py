# SPDX-License-Identifier: Apache-2.0
"""Convert a checkpoint of the published MDM implementation (Apple's ml-mdm) to a diffusers folder.

    python conversion/convert_apple_mdm_to_diffusers.py --checkpoint_path vis_model.pth \
        --config_path cc12m_64x64.yaml --output_dir mdm-64 --text_encoder google/flan-t5-xl

Nothing in the checkpoint is executed. The folder appears when all of it was written, loaded again and compared.
"""

import argparse
import sys

from diffusers_mdm.conversion.apple_mdm import UNUSED_FILE, convert_apple_checkpoint
from diffusers_mdm.conversion.write_pipeline import DTYPES, assemble_pipeline, check_output_is_new, write_model


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    """Return the parsed command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("--checkpoint_path", required=True, help="vis_model.pth, as the published trainer writes it")
    parser.add_argument(
        "--config_path", help="the model's YAML; may be left out if the checkpoint holds the trainer's arguments"
    )
    parser.add_argument("--output_dir", required=True, help="folder to make; must not exist")
    parser.add_argument(
        "--text_encoder",
        help="folder or Hub id of the text encoder; makes a complete pipeline (without it: unet/ and scheduler/)",
    )
    parser.add_argument("--dtype", choices=sorted(DTYPES), help="save in this dtype (default: the checkpoint's own)")
    parser.add_argument("--level", type=int, help="keep only this many levels, counted from the innermost")
    return parser.parse_args(argv)


def convert(args: argparse.Namespace) -> None:
    """Convert as the command line says."""
    check_output_is_new(args.output_dir)
    converted = convert_apple_checkpoint(args.checkpoint_path, args.config_path, num_levels=args.level)
    unet = converted.unet.to(DTYPES[args.dtype]) if args.dtype else converted.unet
    make_pipeline = None
    if args.text_encoder:
        from diffusers_mdm.pipelines.pipeline_mdm import MDMPipeline

        def make_pipeline(unet, scheduler):
            return assemble_pipeline(MDMPipeline, unet, scheduler, args.text_encoder, unet.dtype)

    write_model(args.output_dir, unet, converted.scheduler, {UNUSED_FILE: converted.unused}, make_pipeline)


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
