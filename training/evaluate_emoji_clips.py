# SPDX-License-Identifier: Apache-2.0
"""Measure how often a model trained on the animated emoji generates the captioned clip, and how much its clips move.

python training/evaluate_emoji_clips.py --model_dir model_cards/mdm-emoji-clips-64 --output scores.json
"""

PARSES_FIRST = True  # see diffusers_mdm/__init__.py

import argparse
import dataclasses
from pathlib import Path

from diffusers_mdm.command_parsing import mistakes_in_one_line
from diffusers_mdm.training.commands.evaluation_command import (
    drawing_settings,
    evaluation_parser,
    open_pipeline,
    write_report,
)

DATA_DIR = Path(__file__).parent / "data" / "emoji-clips-64"


def parse_args() -> argparse.Namespace:
    """The command's flags."""
    parser = evaluation_parser(__doc__ or "", DATA_DIR, guidance_scale=3.0, batch_size=8)
    parser.add_argument("--num_seen", type=int, default=100, help="number of captions of the training split")
    return parser.parse_args()


def evaluate(args: argparse.Namespace) -> None:
    """Load the model, generate, compare, print and save."""
    from diffusers_mdm import MDMVideoPipeline
    from diffusers_mdm.evaluation.recall import choose_records, evaluate_clips
    from diffusers_mdm.training.commands.evaluation.galleries import load_clip_gallery

    pipeline = open_pipeline(MDMVideoPipeline, args)
    if args.height is not None and args.height not in pipeline.image_sides:
        sides = ", ".join(map(str, pipeline.image_sides))
        raise ValueError(f"--height {args.height} is not the side of a level; this model has {sides}.")
    level = -1 if args.height is None else pipeline.image_sides.index(args.height)
    gallery, captions = load_clip_gallery(args.data_dir, pipeline.unet.level_frames[level])
    records = choose_records(range(len(captions)), args.num_seen, args.seed)
    scores = evaluate_clips(pipeline, gallery, captions, records, args.batch_size, args.seed, **drawing_settings(args))
    print(
        f"{scores.num_drawn} clips generated: the nearest of {len(captions)} clips in the data set is the captioned "
        f"one for {scores.clip:.1%}; they move {scores.motion:.2f} times as much as the captioned clips"
    )
    write_report(args, dataclasses.asdict(scores))


def main() -> None:
    """Run the command; user errors end the program with one line that says what to do."""
    args = parse_args()
    with mistakes_in_one_line():
        evaluate(args)


if __name__ == "__main__":
    main()
