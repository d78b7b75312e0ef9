# SPDX-License-Identifier: Apache-2.0
"""Measure what is saved and lost when a level reuses layers of the level inside it.

The recipe's two innermost levels are trained together from the start. The outer level has the inner level's numbers of
channels, so that each of its residual and resampling layers has a counterpart: once with its own layers, once with the
inner level's time embedding (`share_time_embedding`), once with its blocks (`share_blocks`). All runs have the same
seed, steps and images, and are measured on the same held-out images with the same noise and averaged weights.
Interrupted runs are resumed. Then steps of all models are timed alternately.

python benchmarks/weight_sharing.py --output_dir runs/sharing
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import logging
import statistics
from collections.abc import Callable
from pathlib import Path

import torch
from measuring import ROOT, describe_machine, random_inputs, time_by_turns, write_numbers

from diffusers_mdm.training.loop.engine import run_recipe
from diffusers_mdm.training.loop.start import build_unet
from diffusers_mdm.training.recipe.loading import load_recipe
from diffusers_mdm.training.recipe.recipe import Recipe
from diffusers_mdm.training.state.history import FILE_NAME, History
from diffusers_mdm.training.state.run import RunOptions

RECIPE = ROOT / "training" / "recipes" / "emoji_growth.yaml"
NO_SHARING = "no sharing"
WAYS: dict[str, dict[str, bool]] = {
    NO_SHARING: {},
    "time embedding": {"share_time_embedding": True},
    "blocks": {"share_blocks": True},
}


@dataclasses.dataclass(frozen=True)
class SharingResult:
    """Result of one way of sharing.

    Attributes:
        parameters: number of parameters of both levels, shared ones counted once, without the text encoder.
        outer_parameters: those that the outer level adds to the inner level.
        losses: held-out error of v by step, innermost level first.
        seconds: median time of a step.
        step_ratio: `seconds` relative to the median without sharing.
    """

    parameters: int
    outer_parameters: int
    losses: dict[int, list[float]]
    seconds: float
    step_ratio: float


def sharing_recipe(recipe: Recipe, settings: dict[str, bool], steps: int) -> Recipe:
    """Return a recipe that trains both levels together; the outer one has the inner one's channels and no attention.

    The outer level is trained on half of each batch, as its share of the cost is the largest.
    """
    inner, stage = recipe.levels[0], recipe.stages[-1]
    outer = {
        **inner,
        "attention_layers_per_block": [0] * len(inner["block_out_channels"]),
        "has_mid_block": False,
        "has_attention_ffn": False,
        **settings,
    }
    both = dataclasses.replace(
        stage, name="both", levels=2, steps=steps, images=None, until_plateau=None, batch_fractions=(1.0, 0.5)
    )
    return dataclasses.replace(recipe, levels=(inner, outer), stages=(both,))


def train(recipe: Recipe, options: RunOptions) -> dict[int, list[float]]:
    """Train a recipe; return the held-out error of v of every level, by step."""
    run_recipe(recipe, options)
    return held_out_losses(History(options.output_dir / FILE_NAME).read())


def held_out_losses(rows: list[dict]) -> dict[int, list[float]]:
    """Return the measurements in a history, by step."""
    losses = {}
    for row in rows:
        keys = sorted(key for key in row if key.startswith("validation_loss/level_") and key.count("/") == 1)
        if keys:
            losses[row["step"]] = [row[key] for key in keys]
    return losses


def training_step(recipe: Recipe, precision: str | None, backend: str | None) -> Callable[[], None]:
    """Return a training step of the recipe's U-Net on random inputs: forward, backward, AdamW; no data, no text
    encoder.
    """
    unet = build_unet(recipe, 2).train()
    if backend is not None:
        unet.set_attention_backend(backend)
    inputs = random_inputs(unet, recipe.stages[0].samples_per_level)
    optimizer = torch.optim.AdamW(unet.parameters(), lr=1e-5)
    dtype = {"fp16": torch.float16, "bf16": torch.bfloat16}.get(precision or "no")

    def step() -> None:
        with contextlib.nullcontext() if dtype is None else torch.autocast("cpu", dtype):
            predictions = unet(**inputs).sample
        torch.stack([level.float().square().mean() for level in predictions]).sum().backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    return step


def count_parameters(recipe: Recipe, levels: int) -> int:
    """Count the parameters of the recipe's inner `levels` levels, shared ones once."""
    return sum(parameter.numel() for parameter in build_unet(recipe, levels).parameters())


def main(argv: list[str] | None = None) -> None:
    """Train all variants, time their steps alternately, write the numbers and print them."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--recipe", type=Path, default=RECIPE)
    parser.add_argument("--output_dir", type=Path, required=True)
    parser.add_argument("--steps", type=int, default=350)
    parser.add_argument("--measure_every", type=int, default=50, help="steps between two measurements")
    parser.add_argument("--rounds", type=int, default=9, help="timed steps per model")
    parser.add_argument("--mixed_precision", choices=["no", "fp16", "bf16"])
    parser.add_argument("--attention_backend", help="of diffusers")
    args = parser.parse_args(argv)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s", datefmt="%H:%M:%S")
    base = load_recipe(args.recipe)
    recipes = {name: sharing_recipe(base, settings, args.steps) for name, settings in WAYS.items()}
    losses = {}
    for name, recipe in recipes.items():
        options = RunOptions(
            args.output_dir / name.replace(" ", "_"),
            report_to=None,
            checkpoints_total_limit=1,
            validation_steps=args.measure_every,
            mixed_precision=args.mixed_precision,
            attention_backend=args.attention_backend,
        )
        losses[name] = train(recipe, options)
    calls = {
        name: training_step(recipe, args.mixed_precision, args.attention_backend) for name, recipe in recipes.items()
    }
    seconds = {name: statistics.median(times) for name, times in time_by_turns(calls, args.rounds).items()}
    inner_parameters = count_parameters(recipes[NO_SHARING], 1)
    results = {}
    for name, recipe in recipes.items():
        parameters = count_parameters(recipe, 2)
        ratio = seconds[name] / seconds[NO_SHARING]
        results[name] = SharingResult(
            parameters, parameters - inner_parameters, losses[name], round(seconds[name], 4), round(ratio, 4)
        )
    report = {name: dataclasses.asdict(result) for name, result in results.items()}
    write_numbers(args.output_dir / "weight_sharing.json", report)
    print(describe_machine("cpu"))
    sides = build_unet(recipes[NO_SHARING], 2).sample_sizes
    for name, result in results.items():
        last = max(result.losses)
        errors = ", ".join(f"{side} px {loss:.4f}" for side, loss in zip(sides, result.losses[last], strict=True))
        print(
            f"{name}: {result.parameters:,} parameters ({result.outer_parameters:,} of the outer level), a step takes "
            f"{result.step_ratio:.2f}; held-out error of v after {last} steps: {errors}"
        )


if __name__ == "__main__":
    main()
