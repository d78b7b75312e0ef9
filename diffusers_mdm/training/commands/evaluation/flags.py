# SPDX-License-Identifier: Apache-2.0
"""The flags of `diffusers-mdm evaluate` and its verbs: all, reference, generate, score, samples and sheet."""

import argparse
from collections.abc import Sequence
from pathlib import Path

from ....command_parsing import command_parser

FEATURES = ("inception", "dinov2", "clip")
OF_CAPTIONS = ("clip_score", "retrieval", "noise")  # metrics that need captions
METRICS = ("fid", "kid", "precision_recall", "fd_dinov2", "cmmd", "clip_score", "retrieval", "noise")
DEFAULT_METRICS = ("fid", "kid", "precision_recall", "retrieval")


def build_parser(description: str, program: str) -> argparse.ArgumentParser:
    """Return the parser of the command and its verbs.

    Args:
        description: the beginning of its `--help`.
        program: its name in messages.
    """
    parser = command_parser(program, description)
    verbs = parser.add_subparsers(dest="verb", required=True, metavar="VERB")
    add_all(verbs.add_parser("all", help="generate images and compare them with real ones: the next three in one"))
    add_reference(verbs.add_parser("reference", help="compute features of real images, once per data set"))
    add_generate(verbs.add_parser("generate", help="generate images for captions into a folder"))
    add_score(verbs.add_parser("score", help="compare generated images with a reference"))
    add_samples(verbs.add_parser("samples", help="generate a sheet of samples for a model card, from several seeds"))
    add_sheet(verbs.add_parser("sheet", help="show generated images of one or more models above the real ones"))
    return parser


def parse_arguments(parser: argparse.ArgumentParser, arguments: Sequence[str]) -> argparse.Namespace:
    """Parse the command line; mistakes end the program.

    Args:
        parser: from `build_parser`.
        arguments: the words of the command line.
    """
    args = parser.parse_args(arguments)
    if args.verb == "samples":
        check_samples(parser, args)
    return args


def add_all(parser: argparse.ArgumentParser) -> None:
    """Add the flags of "all"."""
    add_model(parser)
    add_data(parser, required=True)
    parser.add_argument("--num_captions", type=int, metavar="N", help="images to generate (default: one per caption)")
    parser.add_argument(
        "--num_images", type=int, metavar="N", help="images of an unconditional model, which takes no captions"
    )
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="seed of the captions and the noise")
    add_metrics(parser)
    add_networks(parser)
    parser.add_argument(
        "--output_dir", type=Path, required=True, metavar="FOLDER", help="folder for images, reference and scores"
    )


def add_reference(parser: argparse.ArgumentParser) -> None:
    """Add the flags of "reference"."""
    add_data(parser, required=True)
    parser.add_argument(
        "--sides",
        type=int,
        nargs="+",
        required=True,
        metavar="PIXELS",
        help="sides of the levels in pixels, e.g. 16 64",
    )
    parser.add_argument("--features", nargs="*", choices=FEATURES, default=["inception"], help="(default: inception)")
    add_networks(parser)
    add_batch_size(parser)
    parser.add_argument("--num_images", type=int, metavar="N", help="chosen by --seed (default: all)")
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="seed of the choice of images")
    parser.add_argument("--output_dir", type=Path, required=True, metavar="FOLDER", help="folder for the reference")


def add_generate(parser: argparse.ArgumentParser) -> None:
    """Add the flags of "generate"."""
    add_model(parser)
    add_data(parser, required=False)
    parser.add_argument(
        "--captions_file", type=Path, metavar="FILE", help="text file with one caption per line, instead of --data_dir"
    )
    parser.add_argument("--num_captions", type=int, metavar="N", help="chosen by --seed (default: all)")
    parser.add_argument(
        "--num_images", type=int, metavar="N", help="images of an unconditional model, which takes no captions"
    )
    parser.add_argument(
        "--seed", type=int, default=0, metavar="N", help="seed of the choice of captions and of the noise"
    )
    parser.add_argument("--output_dir", type=Path, required=True, metavar="FOLDER", help="folder for the images")


def add_model(parser: argparse.ArgumentParser) -> None:
    """Add the flags for the model and how it generates."""
    parser.add_argument("--model_dir", required=True, metavar="MODEL", help="pipeline folder or Hub id")
    parser.add_argument("--num_inference_steps", type=int, metavar="N", help="(default: the pipeline's)")
    parser.add_argument("--guidance_scale", type=float, metavar="W", help="(default: the pipeline's)")
    parser.add_argument(
        "--height", type=int, metavar="PIXELS", help="side in pixels of the level to generate (default: the outermost)"
    )
    parser.add_argument("--batch_size", type=int, default=16, metavar="N", help="images per call on each process")
    parser.add_argument(
        "--dtype", choices=("float32", "bfloat16", "float16"), default="float32", help="dtype of the model"
    )


def add_samples(parser: argparse.ArgumentParser) -> None:
    """Add the flags of "samples"; with `--data_dir`, real images are shown, too."""
    add_model(parser)
    parser.add_argument("--prompts", nargs="+", metavar="TEXT", help="captions, one row each")
    parser.add_argument(
        "--captions_file", type=Path, metavar="FILE", help="text file with one caption per line, instead of --prompts"
    )
    parser.add_argument("--num_captions", type=int, metavar="N", help="of a file or the data set, chosen by --seed")
    add_data(parser, required=False)
    parser.add_argument("--num_seeds", type=int, default=4, metavar="N", help="images per caption (default: 4)")
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="the first seed (default: 0)")
    parser.add_argument("--output", type=Path, required=True, metavar="FILE", help="PNG file to write")


def check_samples(parser: argparse.ArgumentParser, args: argparse.Namespace) -> None:
    """Check the flags of "samples"; mistakes end the program."""
    if args.num_seeds < 1:
        parser.error(f"--num_seeds is {args.num_seeds}; expected at least 1.")
    if args.prompts and args.captions_file:
        parser.error("--prompts and --captions_file are both captions; pass one of them.")


def add_sheet(parser: argparse.ArgumentParser) -> None:
    """Add the flags of "sheet"."""
    parser.add_argument(
        "--drawings",
        type=Path,
        nargs="+",
        required=True,
        metavar="FOLDER",
        help="folders written by `generate` for the same captions, from top to bottom",
    )
    add_data(parser, required=False)
    parser.add_argument("--num_images", type=int, default=40, metavar="N", help="number of captions (default: 40)")
    parser.add_argument("--columns", type=int, default=10, metavar="N", help="columns of the sheet (default: 10)")
    parser.add_argument("--output", type=Path, required=True, metavar="FILE", help="PNG file to write")


def add_score(parser: argparse.ArgumentParser) -> None:
    """Add the flags of "score"."""
    parser.add_argument("--drawings", type=Path, required=True, metavar="FOLDER", help="folder written by `generate`")
    parser.add_argument(
        "--reference", type=Path, required=True, metavar="FOLDER", help="folder written by `reference`"
    )
    add_metrics(parser)
    add_data(parser, required=False)
    add_networks(parser)
    add_batch_size(parser)
    parser.add_argument("--output", type=Path, metavar="FILE", help="JSON file for the scores")
    parser.add_argument(
        "--contact_sheet", type=Path, metavar="FILE", help="PNG with generated images above the real ones"
    )
    parser.add_argument(
        "--card_section", type=Path, metavar="FILE", help="Markdown file with a section for the model card"
    )


def add_metrics(parser: argparse.ArgumentParser) -> None:
    """Add the flag for the metrics."""
    parser.add_argument(
        "--metrics",
        nargs="+",
        choices=METRICS,
        help="what to measure (default: the metrics of Inception-v3 and, for captions, retrieval); noise needs the "
        "real images of the captions (--data_dir)",
    )


def add_data(parser: argparse.ArgumentParser, required: bool) -> None:
    """Add the flags for the data set of real images with captions."""
    parser.add_argument(
        "--data_dir", required=required, metavar="DATA", help="folder or Hub id of a data set of captioned images"
    )
    parser.add_argument("--split", default="train", metavar="NAME", help="split of the data set (default: train)")
    parser.add_argument("--image_column", default="image", metavar="NAME", help="(default: image)")
    parser.add_argument("--caption_column", default="text", metavar="NAME", help="(default: text)")
    parser.add_argument("--no_captions", action="store_true", help="the images have no captions")


def add_networks(parser: argparse.ArgumentParser) -> None:
    """Add the flags for the feature extractors."""
    parser.add_argument("--dinov2", metavar="MODEL", help="folder or Hub id (default: facebook/dinov2-base)")
    parser.add_argument("--clip", metavar="MODEL", help="(default: openai/clip-vit-large-patch14-336)")
    parser.add_argument("--device", metavar="NAME", help="cuda, mps or cpu (default: an accelerator, if there is one)")


def add_batch_size(parser: argparse.ArgumentParser) -> None:
    """Add the flag for the number of images per batch of a feature extractor."""
    parser.add_argument("--batch_size", type=int, default=32, metavar="N", help="images per batch (default: 32)")
