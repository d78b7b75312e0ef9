# SPDX-License-Identifier: Apache-2.0
"""Compare training from the inside out with training all levels from the start, at equal compute.

First the recipe's stages are trained as they are. Then its last stage alone is trained from scratch, for the number of
steps that costs the same number of operations (forward and backward of the U-Net, without text encoder and optimizer).
Both runs are measured on the same held-out images, with the same noise and averaged weights. Interrupted runs are
resumed.

python benchmarks/progressive_vs_scratch.py --output_dir runs/growth
"""

from __future__ import annotations

import argparse
import dataclasses
import logging
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure
from measuring import ROOT, count_flops, describe_machine, forward_and_backward, random_inputs, write_numbers

from diffusers_mdm.training.loop.engine import run_recipe
from diffusers_mdm.training.loop.start import build_unet
from diffusers_mdm.training.recipe.loading import load_recipe
from diffusers_mdm.training.recipe.recipe import Recipe
from diffusers_mdm.training.recipe.stage import StageRecipe
from diffusers_mdm.training.state.history import FILE_NAME, History
from diffusers_mdm.training.state.run import RunOptions

RECIPE = ROOT / "training" / "recipes" / "emoji_growth.yaml"
PROGRESSIVE, SCRATCH = "from the inside out", "all levels from the start"


@dataclasses.dataclass(frozen=True)
class Measurement:
    """Held-out error of v of the trained levels, after a number of operations."""

    stage: str
    step: int
    flops: float
    losses: list[float]


def flops_per_step(recipe: Recipe, stage: StageRecipe) -> float:
    """Count the operations of one optimizer step on one process."""
    unet = build_unet(recipe, stage.levels).train()
    inputs = random_inputs(unet, stage.samples_per_level)
    return float(stage.gradient_accumulation_steps * count_flops(lambda: forward_and_backward(unet, inputs)))


def curve(rows: list[dict[str, Any]], costs: dict[str, float]) -> list[Measurement]:
    """Return the measurements in a history; `costs` has the operations per step of each stage."""
    measurements, step, flops = [], 0, 0.0
    for row in rows:
        # A stage always reports its last step, so all steps since the previous report belong to the stage of this one.
        flops += (row["step"] - step) * costs[row["stage"]]
        step = row["step"]
        losses = [row[key] for key in sorted(row) if key.startswith("validation_loss/level_") and key.count("/") == 1]
        if losses:
            measurements.append(Measurement(row["stage"], step, flops, losses))
    return measurements


def train(recipe: Recipe, output_dir: Path, options: dict[str, Any]) -> list[Measurement]:
    """Train a recipe and return its history."""
    run_recipe(recipe, RunOptions(output_dir, report_to=None, checkpoints_total_limit=1, **options))
    costs = {stage.name: flops_per_step(recipe, stage) for stage in recipe.stages}
    return curve(History(output_dir / FILE_NAME).read(), costs)


def scratch_recipe(recipe: Recipe, flops: float) -> Recipe:
    """Return the recipe's last stage alone, for `flops` operations."""
    last = recipe.stages[-1]
    steps = round(flops / flops_per_step(recipe, last))
    stage = dataclasses.replace(last, name="scratch", steps=steps, until_plateau=None, images=None)
    return dataclasses.replace(recipe, name=f"{recipe.name}_scratch", stages=(stage,))


def plot(curves: dict[str, list[Measurement]], sides: tuple[int, ...], path: Path) -> None:
    """Plot the held-out error against operations for both ways of training, one panel per level."""
    figure = Figure(figsize=(5.0 * len(sides), 3.6), dpi=120, layout="constrained")
    panels = figure.subplots(1, len(sides), squeeze=False)[0]
    for level, (side, panel) in enumerate(zip(sides, panels, strict=True)):
        for name, measurements in curves.items():
            points = [point for point in measurements if len(point.losses) > level]
            panel.plot([p.flops / 1e15 for p in points], [p.losses[level] for p in points], ".-", label=name)
        panel.set_title(f"level {level}, {side} pixels")
        panel.set_xlabel("operations of forward and backward (1e15)")
        panel.set_ylabel("held-out error of v")
        panel.set_yscale("log")
        panel.set_xlim(left=0)
        panel.grid(alpha=0.3, which="both")
        panel.legend()
    figure.savefig(path, metadata={"Software": None})


def main(argv: list[str] | None = None) -> None:
    """Train both ways, plot the curves, write the numbers and print the final ones."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--recipe", type=Path, default=RECIPE)
    parser.add_argument("--output_dir", type=Path, required=True)
    parser.add_argument("--measure_every", type=int, default=100, help="steps between two measurements")
    parser.add_argument("--mixed_precision", choices=["no", "fp16", "bf16"])
    parser.add_argument("--attention_backend", help="of diffusers")
    args = parser.parse_args(argv)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s", datefmt="%H:%M:%S")
    recipe = load_recipe(args.recipe)
    options = {
        "validation_steps": args.measure_every,
        "mixed_precision": args.mixed_precision,
        "attention_backend": args.attention_backend,
    }
    curves = {PROGRESSIVE: train(recipe, args.output_dir / "progressive", options)}
    spent = curves[PROGRESSIVE][-1].flops
    curves[SCRATCH] = train(scratch_recipe(recipe, spent), args.output_dir / "scratch", options)
    sides = build_unet(recipe, len(recipe.levels)).sample_sizes
    plot(curves, sides, args.output_dir / "progressive_vs_scratch.png")
    report = {name: [dataclasses.asdict(point) for point in points] for name, points in curves.items()}
    write_numbers(args.output_dir / "progressive_vs_scratch.json", report)
    print(describe_machine("cpu"))
    for name, points in curves.items():
        losses = ", ".join(f"{side} px {loss:.4f}" for side, loss in zip(sides, points[-1].losses, strict=True))
        print(f"{name}: {points[-1].step} steps, {points[-1].flops:.3g} operations, held-out error of v {losses}")


if __name__ == "__main__":
    main()
