# SPDX-License-Identifier: Apache-2.0
"""Measure whether a model trained on the emoji data set draws what its captions ask for.

python training/evaluate_emoji_model.py --model_dir model_cards/mdm-emoji-64 --output scores.json
"""

import argparse
import dataclasses
import json
from pathlib import Path

import torch

from diffusers_mdm import MDMPipeline
from diffusers_mdm.training.retrieval import GROUPS, evaluate_retrieval, load_gallery

DATA_DIR = Path(__file__).parent / "data" / "emoji-styles-64"


def parse_args() -> argparse.Namespace:
    """The command's flags."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--model_dir", required=True, help="pipeline folder or Hub id")
    parser.add_argument("--data_dir", default=DATA_DIR, help="emoji data set (default: the shipped one)")
    parser.add_argument("--num_seen", type=int, default=200, help="captions of the training split to draw")
    parser.add_argument("--groups", nargs="+", choices=GROUPS, default=GROUPS, help="what to draw (default: all)")
    parser.add_argument("--seed", type=int, default=0, help="which captions, and their noise")
    parser.add_argument("--num_inference_steps", type=int, default=25)
    parser.add_argument("--guidance_scale", type=float, default=2.0)
    parser.add_argument("--height", type=int, help="side to draw: 16 opens the inner doll only (default: all dolls)")
    parser.add_argument("--batch_size", type=int, default=25)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--output", type=Path, help="JSON file for settings and scores")
    return parser.parse_args()


def main() -> None:
    """Load, draw, compare, print and save."""
    args = parse_args()
    pipeline = MDMPipeline.from_pretrained(args.model_dir).to(args.device)
    pipeline.set_progress_bar_config(disable=True)
    settings = {
        "num_inference_steps": args.num_inference_steps,
        "guidance_scale": args.guidance_scale,
        "height": args.height,
    }
    gallery = load_gallery(args.data_dir)
    scores = evaluate_retrieval(pipeline, gallery, args.num_seen, args.batch_size, args.seed, args.groups, **settings)
    for name, score in scores.items():
        print(
            f"{name}: {score.num_drawn} drawn; nearest picture is the captioned one {score.picture:.1%}, "
            f"has its style {score.style:.1%}, shows its emoji {score.label:.1%}"
        )
    if args.output is not None:
        report = {
            "settings": {**settings, "seed": args.seed},
            "scores": {name: dataclasses.asdict(score) for name, score in scores.items()},
        }
        args.output.write_text(json.dumps(report, indent=2) + "\n")


if __name__ == "__main__":
    main()
