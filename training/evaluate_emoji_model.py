# SPDX-License-Identifier: Apache-2.0
"""Measure how often a model trained on the emoji data set generates what its captions describe.

python training/evaluate_emoji_model.py --model_dir model_cards/mdm-emoji-64 --output scores.json
"""

PARSES_FIRST = True  # see diffusers_mdm/__init__.py

import argparse
import dataclasses
from pathlib import Path

from diffusers_mdm.command_parsing import mistakes_in_one_line
from diffusers_mdm.training.commands.evaluation_command import (
    GROUPS,
    drawing_settings,
    evaluation_parser,
    open_pipeline,
    write_report,
)

DATA_DIR = Path(__file__).parent / "data" / "emoji-styles-64"


def parse_args() -> argparse.Namespace:
    """The command's flags."""
    parser = evaluation_parser(__doc__ or "", DATA_DIR, guidance_scale=2.0, batch_size=25)
    parser.add_argument("--num_seen", type=int, default=200, help="number of captions of the training split")
    parser.add_argument(
        "--groups", nargs="+", choices=GROUPS, default=GROUPS, help="groups of captions (default: all)"
    )
    return parser.parse_args()


def evaluate(args: argparse.Namespace) -> None:
    """Load the model, generate, compare, print and save."""
    from diffusers_mdm import MDMPipeline
    from diffusers_mdm.evaluation.recall import evaluate_retrieval
    from diffusers_mdm.training.commands.evaluation.galleries import load_gallery

    pipeline = open_pipeline(MDMPipeline, args)
    gallery = load_gallery(args.data_dir)
    scores = evaluate_retrieval(
        pipeline, gallery, args.num_seen, args.batch_size, args.seed, args.groups, **drawing_settings(args)
    )
    for name, score in scores.items():
        print(
            f"{name}: {score.num_drawn} images generated: the nearest image in the data set is the captioned one for "
            f"{score.image:.1%}, has its style for {score.style:.1%}, and shows its emoji for {score.label:.1%}"
        )
    write_report(args, {"scores": {name: dataclasses.asdict(score) for name, score in scores.items()}})


def main() -> None:
    """Run the command; user errors end the program with one line that says what to do."""
    args = parse_args()
    with mistakes_in_one_line():
        evaluate(args)


if __name__ == "__main__":
    main()
