# SPDX-License-Identifier: Apache-2.0
"""Measure how often a class-conditional model trained on the emoji data set generates the requested class.

python training/evaluate_emoji_classes.py --model_dir model_cards/mdm-emoji-classes-64 --output scores.json
"""

PARSES_FIRST = True  # see diffusers_mdm/__init__.py

import argparse
from pathlib import Path

from diffusers_mdm.command_parsing import mistakes_in_one_line
from diffusers_mdm.training.commands.evaluation_command import (
    drawing_settings,
    evaluation_parser,
    open_pipeline,
    write_report,
)

DATA_DIR = Path(__file__).parent / "data" / "emoji-styles-64"


def parse_args() -> argparse.Namespace:
    """The command's flags."""
    parser = evaluation_parser(__doc__ or "", DATA_DIR, guidance_scale=3.0, batch_size=32)
    parser.add_argument(
        "--label_column", default="subgroup", help="column with the classes that the model was trained on"
    )
    parser.add_argument("--num_per_class", type=int, default=4, help="images per class")
    return parser.parse_args()


def evaluate(args: argparse.Namespace) -> None:
    """Load the model, generate, compare, print and save."""
    from diffusers_mdm import MDMClassConditionalPipeline
    from diffusers_mdm.evaluation.recall import evaluate_classes
    from diffusers_mdm.training.commands.evaluation.galleries import load_class_gallery

    pipeline = open_pipeline(MDMClassConditionalPipeline, args)
    gallery, classes = load_class_gallery(args.data_dir, args.label_column)
    shares = evaluate_classes(
        pipeline, gallery, classes, args.num_per_class, args.batch_size, args.seed, **drawing_settings(args)
    )
    mean = sum(shares.values()) / len(shares)
    print(
        f"{len(shares)} classes, {args.num_per_class} images each: the nearest of {len(classes)} images in the data "
        f"set has the requested class for {mean:.1%} (by chance: {1 / len(shares):.1%})"
    )
    names = {pipeline.id2label.get(label, str(label)): share for label, share in shares.items()}
    write_report(args, {"mean": mean, "classes": names}, num_per_class=args.num_per_class)


def main() -> None:
    """Run the command; user errors end the program with one line that says what to do."""
    args = parse_args()
    with mistakes_in_one_line():
        evaluate(args)


if __name__ == "__main__":
    main()
