# SPDX-License-Identifier: Apache-2.0
"""Flags, pipeline settings and report of the commands that evaluate models trained on the emoji."""

import argparse
import json
from pathlib import Path
from typing import Any

from ...command_parsing import OneLineParser

# Groups of captions: seen in training, held-out combinations, held-out concepts. `evaluation.recall` has the same, but
# is slow to import.
GROUPS = ("seen", "combination", "concept")


def evaluation_parser(
    description: str, data_dir: Path, guidance_scale: float, batch_size: int
) -> argparse.ArgumentParser:
    """Return a parser with the flags for the model, its settings, and the data that it is compared with.

    Args:
        description: description of the command; the first line is shown.
        data_dir: default of `--data_dir`.
        guidance_scale: default of `--guidance_scale`.
        batch_size: default of `--batch_size`.
    """
    parser = OneLineParser(description=description.split("\n")[0], allow_abbrev=False)
    parser.add_argument("--model_dir", required=True, help="pipeline folder or Hub id")
    parser.add_argument("--data_dir", default=data_dir, help="data set to compare with (default: the shipped one)")
    parser.add_argument("--seed", type=int, default=0, help="seed of the noise and of the choice of captions")
    parser.add_argument("--num_inference_steps", type=int, default=25, help="number of sampling steps (default 25)")
    parser.add_argument("--guidance_scale", type=float, default=guidance_scale, help=f"(default {guidance_scale:g})")
    parser.add_argument("--height", type=int, help="side in pixels of the level to generate (default: the outermost)")
    parser.add_argument("--batch_size", type=int, default=batch_size, help=f"images per batch (default {batch_size})")
    parser.add_argument("--device", help="cuda, mps or cpu, for example (default: an accelerator, if there is one)")
    parser.add_argument("--output", type=Path, help="JSON file for settings and scores")
    return parser


def open_pipeline(pipeline_class: Any, args: argparse.Namespace) -> Any:
    """Load the pipeline to evaluate, on its device and without a progress bar of its own."""
    from accelerate import PartialState

    pipeline = pipeline_class.from_pretrained(args.model_dir).to(args.device or PartialState().device)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def drawing_settings(args: argparse.Namespace) -> dict[str, Any]:
    """Return the flags that are arguments of the pipeline's call."""
    return {name: getattr(args, name) for name in ("num_inference_steps", "guidance_scale", "height")}


def write_report(args: argparse.Namespace, scores: dict[str, Any], **settings: Any) -> None:
    """Write the settings and the scores as JSON to `--output`, if that is given.

    Args:
        args: the flags, from `evaluation_parser`.
        scores: the scores by name.
        **settings: settings in addition to those of the pipeline.
    """
    if args.output is not None:
        report = {"settings": {**drawing_settings(args), "seed": args.seed, **settings}, **scores}
        args.output.write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
