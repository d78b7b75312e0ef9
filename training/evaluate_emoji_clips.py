# SPDX-License-Identifier: Apache-2.0
"""Measure whether a model trained on the animated emoji draws the clips that its captions ask for, and how they move.

python training/evaluate_emoji_clips.py --model_dir model_cards/mdm-emoji-clips-64 --output scores.json
"""

import argparse
import dataclasses
import json
from pathlib import Path

import torch

from diffusers_mdm import MDMVideoPipeline
from diffusers_mdm.training.clip_retrieval import evaluate_clips, load_clip_gallery
from diffusers_mdm.training.retrieval import choose_rows

DATA_DIR = Path(__file__).parent / "data" / "emoji-clips-64"


def parse_args() -> argparse.Namespace:
    """The command's flags."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--model_dir", required=True, help="pipeline folder or Hub id")
    parser.add_argument("--data_dir", default=DATA_DIR, help="animated emoji (default: the shipped ones)")
    parser.add_argument("--num_seen", type=int, default=100, help="captions of the training split to draw")
    parser.add_argument("--seed", type=int, default=0, help="which captions, and their noise")
    parser.add_argument("--num_inference_steps", type=int, default=25)
    parser.add_argument("--guidance_scale", type=float, default=3.0)
    parser.add_argument("--height", type=int, help="side to draw: 16 opens the inner doll only (default: all dolls)")
    parser.add_argument("--batch_size", type=int, default=8)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--output", type=Path, help="JSON file for settings and scores")
    return parser.parse_args()


def main() -> None:
    """Load, draw, compare, print and save."""
    args = parse_args()
    pipeline = MDMVideoPipeline.from_pretrained(args.model_dir).to(args.device)
    pipeline.set_progress_bar_config(disable=True)
    if args.height is not None and args.height not in pipeline.picture_sides:
        sides = ", ".join(map(str, pipeline.picture_sides))
        raise SystemExit(f"--height {args.height} is the side of no doll; this model has {sides}.")
    settings = {
        "num_inference_steps": args.num_inference_steps,
        "guidance_scale": args.guidance_scale,
        "height": args.height,
    }
    opened = -1 if args.height is None else pipeline.picture_sides.index(args.height)
    gallery, captions = load_clip_gallery(args.data_dir, pipeline.unet.level_frames[opened])
    rows = choose_rows(range(len(captions)), args.num_seen, args.seed)
    scores = evaluate_clips(pipeline, gallery, captions, rows, args.batch_size, args.seed, **settings)
    print(
        f"{scores.num_drawn} drawn; the nearest of {len(captions)} clips is the captioned one for {scores.clip:.1%}; "
        f"they move {scores.motion:.2f} times as much as the captioned ones"
    )
    if args.output is not None:
        report = {"settings": {**settings, "seed": args.seed}, **dataclasses.asdict(scores)}
        args.output.write_text(json.dumps(report, indent=2) + "\n")


if __name__ == "__main__":
    main()
