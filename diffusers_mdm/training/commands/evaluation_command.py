# SPDX-License-Identifier: Apache-2.0
"""What the commands that evaluate trained models have in common: flags, the pipeline's settings, and the report."""

import argparse
import json
from pathlib import Path
from typing import Any

from .parser import OneLineParser

GROUPS = ("seen", "combination", "concept")  # of captions: trained on, held-out combinations, held-out concepts


def evaluation_parser(
    description: str, data_dir: Path, guidance_scale: float, batch_size: int
) -> argparse.ArgumentParser:
    """A parser with the flags that say which model draws, how, and what it is compared with.

    Args:
        description: the first line is shown.
        data_dir: default of the data set.
        guidance_scale: default.
        batch_size: default, drawings at a time.
    """
    parser = OneLineParser(description=description.split("\n")[0], allow_abbrev=False)
    parser.add_argument("--model_dir", required=True, help="pipeline folder or Hub id")
    parser.add_argument("--data_dir", default=data_dir, help="what drawings are compared with (default: as shipped)")
    parser.add_argument("--seed", type=int, default=0, help="of the noise, and of the choice of what is drawn")
    parser.add_argument("--num_inference_steps", type=int, default=25, help="of each drawing (default 25)")
    parser.add_argument("--guidance_scale", type=float, default=guidance_scale, help=f"(default {guidance_scale:g})")
    parser.add_argument("--height", type=int, help="side in pixels of the level to draw (default: the outermost)")
    parser.add_argument(
        "--batch_size", type=int, default=batch_size, help=f"drawings at a time (default {batch_size})"
    )
    parser.add_argument("--device", help="such as cuda, mps or cpu (default: an accelerator where there is one)")
    parser.add_argument("--output", type=Path, help="JSON file for settings and scores")
    return parser


def open_pipeline(pipeline_class: Any, args: argparse.Namespace) -> Any:
    """The pipeline that is evaluated, on its device and without a bar of its own."""
    from accelerate import PartialState

    pipeline = pipeline_class.from_pretrained(args.model_dir).to(args.device or PartialState().device)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def drawing_settings(args: argparse.Namespace) -> dict[str, Any]:
    """The flags that are arguments of the pipeline."""
    return {name: getattr(args, name) for name in ("num_inference_steps", "guidance_scale", "height")}


def write_report(args: argparse.Namespace, scores: dict[str, Any], **settings: Any) -> None:
    """Write the settings and the scores as JSON to `--output`, if that is given.

    Args:
        args: from `evaluation_parser`.
        scores: by name.
        **settings: further ones than those of the drawings.
    """
    if args.output is not None:
        report = {"settings": {**drawing_settings(args), "seed": args.seed, **settings}, **scores}
        args.output.write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
