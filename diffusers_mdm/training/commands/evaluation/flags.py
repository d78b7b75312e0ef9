# SPDX-License-Identifier: Apache-2.0
"""The flags of `training/evaluate.py` with its three verbs: reference, generate and score."""

import argparse
from collections.abc import Sequence
from pathlib import Path

FEATURES = ("inception", "dinov2", "clip")
METRICS = ("fid", "kid", "precision_recall", "fd_dinov2", "cmmd", "clip_score", "retrieval", "noise")
DEFAULT_METRICS = ("fid", "kid", "precision_recall", "retrieval")


def parse_arguments(description: str, arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """Read the command line.

    Args:
        description: of the command; the first line is shown.
        arguments: by default those of the program.
    """
    parser = argparse.ArgumentParser(description=description.split("\n")[0])
    verbs = parser.add_subparsers(dest="verb", required=True, metavar="VERB")
    add_reference(verbs.add_parser("reference", help="compute the features of real pictures, once a data set"))
    add_generate(verbs.add_parser("generate", help="draw captions into a folder"))
    add_score(verbs.add_parser("score", help="compare a folder of drawings with a reference"))
    return parser.parse_args(arguments)


def add_reference(parser: argparse.ArgumentParser) -> None:
    """Add the flags of "reference"."""
    add_data(parser, required=True)
    parser.add_argument("--sides", type=int, nargs="+", required=True, metavar="PIXELS", help="of levels, e.g. 16 64")
    parser.add_argument("--features", nargs="*", choices=FEATURES, default=["inception"], help="(default: inception)")
    add_networks(parser)
    parser.add_argument("--num_pictures", type=int, metavar="N", help="chosen by --seed (default: all)")
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="of the choice of pictures")
    parser.add_argument("--output_dir", type=Path, required=True, metavar="FOLDER", help="takes the reference")


def add_generate(parser: argparse.ArgumentParser) -> None:
    """Add the flags of "generate"."""
    parser.add_argument("--model_dir", required=True, metavar="MODEL", help="pipeline folder or Hub id")
    add_data(parser, required=False)
    parser.add_argument("--captions_file", type=Path, metavar="FILE", help="a caption a line, in place of --data_dir")
    parser.add_argument("--num_captions", type=int, metavar="N", help="chosen by --seed (default: all)")
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="of the choice of captions, and of the noise")
    parser.add_argument("--num_inference_steps", type=int, metavar="N", help="(default: the pipeline's)")
    parser.add_argument("--guidance_scale", type=float, metavar="W", help="(default: the pipeline's)")
    parser.add_argument("--height", type=int, metavar="PIXELS", help="of the level to draw (default: the outermost)")
    parser.add_argument("--batch_size", type=int, default=16, metavar="N", help="drawings at a time on each process")
    parser.add_argument("--dtype", choices=("float32", "bfloat16", "float16"), default="float32", help="of the model")
    parser.add_argument("--output_dir", type=Path, required=True, metavar="FOLDER", help="takes the drawings")


def add_score(parser: argparse.ArgumentParser) -> None:
    """Add the flags of "score"."""
    parser.add_argument("--drawings", type=Path, required=True, metavar="FOLDER", help="that `generate` wrote")
    parser.add_argument("--reference", type=Path, required=True, metavar="FOLDER", help="that `reference` wrote")
    parser.add_argument(
        "--metrics",
        nargs="+",
        choices=METRICS,
        default=list(DEFAULT_METRICS),
        help="what to measure (default: those "
        "of Inception-v3, and nearest pictures); noise needs --data_dir, the true pictures of the captions",
    )
    add_data(parser, required=False)
    add_networks(parser)
    parser.add_argument("--output", type=Path, metavar="FILE", help="JSON file for the scores")
    parser.add_argument("--contact_sheet", type=Path, metavar="FILE", help="PNG of drawings, above their truth")
    parser.add_argument("--card_section", type=Path, metavar="FILE", help="markdown for the model card")


def add_data(parser: argparse.ArgumentParser, required: bool) -> None:
    """Add the flags that say where real pictures with captions are."""
    parser.add_argument("--data_dir", required=required, metavar="DATA", help="folder or Hub id of captioned pictures")
    parser.add_argument("--split", default="train", metavar="NAME", help="of the data set (default: train)")
    parser.add_argument("--image_column", default="image", metavar="NAME", help="(default: image)")
    parser.add_argument("--caption_column", default="text", metavar="NAME", help="(default: text)")


def add_networks(parser: argparse.ArgumentParser) -> None:
    """Add the flags that say which networks look at pictures, and how."""
    parser.add_argument("--dinov2", metavar="MODEL", help="folder or Hub id (default: facebook/dinov2-base)")
    parser.add_argument("--clip", metavar="MODEL", help="(default: openai/clip-vit-large-patch14-336)")
    parser.add_argument("--device", metavar="NAME", help="cuda, mps or cpu (default: an accelerator if any)")
    parser.add_argument("--batch_size", type=int, default=32, metavar="N", help="pictures at a time (default: 32)")
