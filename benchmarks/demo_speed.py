# SPDX-License-Identifier: Apache-2.0
"""Time the two-level demo model: 8 images of 16 and 64 pixels in 25 steps."""

from __future__ import annotations

import argparse
import platform
import statistics
import time

import torch

from diffusers_mdm.demo import DEFAULT_PROMPTS, draw_pyramid, load_pipeline


def main(argv: list[str] | None = None) -> None:
    """Load the model once, generate several times and print the median time."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="model_cards/mdm-emoji-64")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--num_inference_steps", type=int, default=25)
    parser.add_argument("--rounds", type=int, default=3)
    args = parser.parse_args(argv)
    start = time.perf_counter()
    pipeline = load_pipeline(args.model, args.device)
    loaded = time.perf_counter() - start
    pipeline.set_progress_bar_config(disable=True)
    seconds = []
    for _ in range(args.rounds):
        start = time.perf_counter()
        pyramid = draw_pyramid(pipeline, DEFAULT_PROMPTS, num_inference_steps=args.num_inference_steps)
        seconds.append(time.perf_counter() - start)
    sizes = " and ".join(str(level[0].width) for level in pyramid)
    print(
        f"{len(DEFAULT_PROMPTS)} images of {sizes} pixels, {args.num_inference_steps} steps, {args.device} "
        f"({platform.machine()}, {torch.get_num_threads()} threads): {statistics.median(seconds):.1f} s "
        f"(median of {args.rounds}; loading {loaded:.1f} s)"
    )


if __name__ == "__main__":
    main()
