# SPDX-License-Identifier: Apache-2.0
"""Measure whether a class-conditional model trained on the emoji data set draws the classes it is asked for.

python training/evaluate_emoji_classes.py --model_dir model_cards/mdm-emoji-classes-64 --output scores.json
"""

import argparse
import json
from pathlib import Path

import torch

from diffusers_mdm import MDMClassConditionalPipeline
from diffusers_mdm.training.retrieval import evaluate_classes, load_class_gallery

DATA_DIR = Path(__file__).parent / "data" / "emoji-styles-64"


def parse_args() -> argparse.Namespace:
    """The command's flags."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--model_dir", required=True, help="pipeline folder or Hub id")
    parser.add_argument("--data_dir", default=DATA_DIR, help="emoji data set (default: the shipped one)")
    parser.add_argument(
        "--label_column", default="subgroup", help="column of the classes that the model was trained on"
    )
    parser.add_argument("--num_per_class", type=int, default=4, help="drawings of each class")
    parser.add_argument("--seed", type=int, default=0, help="of the drawings' noise")
    parser.add_argument("--num_inference_steps", type=int, default=25)
    parser.add_argument("--guidance_scale", type=float, default=3.0)
    parser.add_argument("--height", type=int, help="side to draw: 16 opens the inner doll only (default: all dolls)")
    parser.add_argument("--batch_size", type=int, default=32)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--output", type=Path, help="JSON file for settings and scores")
    return parser.parse_args()


def main() -> None:
    """Load, draw, compare, print and save."""
    args = parse_args()
    pipeline = MDMClassConditionalPipeline.from_pretrained(args.model_dir).to(args.device)
    pipeline.set_progress_bar_config(disable=True)
    settings = {
        "num_inference_steps": args.num_inference_steps,
        "guidance_scale": args.guidance_scale,
        "height": args.height,
    }
    gallery, classes = load_class_gallery(args.data_dir, args.label_column)
    shares = evaluate_classes(pipeline, gallery, classes, args.num_per_class, args.batch_size, args.seed, **settings)
    mean = sum(shares.values()) / len(shares)
    print(
        f"{len(shares)} classes, {args.num_per_class} drawings each: the nearest of {len(classes)} pictures is of the "
        f"asked class for {mean:.1%} (by chance {1 / len(shares):.1%})"
    )
    if args.output is not None:
        names = {pipeline.id2label.get(label, str(label)): share for label, share in shares.items()}
        report = {
            "settings": {**settings, "seed": args.seed, "num_per_class": args.num_per_class},
            "mean": mean,
            "classes": names,
        }
        args.output.write_text(json.dumps(report, indent=2) + "\n")


if __name__ == "__main__":
    main()
