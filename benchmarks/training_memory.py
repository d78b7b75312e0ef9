# SPDX-License-Identifier: Apache-2.0
"""Compare the memory that `--dry_run` predicts for a stage of training with the peak of real steps.

The steps are those of the U-Net: forward, loss, backward, clipping, optimizer, averages. The text encoder is left out
on both sides. On CPUs tensors are counted (see `memory.py`), on GPUs it is the peak of torch's allocator.
"""

from __future__ import annotations

import argparse
import dataclasses
from functools import partial
from pathlib import Path
from typing import Any

import torch
from machine import describe_machine
from measured_models import laid_out, randomize
from measuring import ROOT
from memory import LivingTensors
from results_table import Results
from training_step import loss_of, our_step
from variants import MIB, add_machine_flags, layout_of

from diffusers_mdm import LevelConfig, NestedUNetModel
from diffusers_mdm.training.costs.memory_estimate import estimate_stage, fake_inputs
from diffusers_mdm.training.recipe.loading import load_recipe
from diffusers_mdm.training.recipe.recipe import Recipe
from diffusers_mdm.training.recipe.stage import StageRecipe
from diffusers_mdm.training.state.run import RunOptions


def train_two_steps(recipe: Recipe, stage: StageRecipe, args: argparse.Namespace) -> None:
    """Build what a stage trains, and train it on random inputs; the second step has all moments of the optimizer."""
    with torch.device(args.device):
        model = NestedUNetModel(**recipe.model, **LevelConfig.columns_from(recipe.level_configs[: stage.levels]))
    model = randomize(model).train().to(memory_format=layout_of(args))
    if args.gradient_checkpointing:
        model.enable_gradient_checkpointing()
    with torch.device(args.device):
        inputs = fake_inputs(model, recipe, stage)
        inputs["sample"] = laid_out([torch.randn(level.shape) for level in inputs["sample"]], layout_of(args))
        inputs["encoder_hidden_states"] = torch.randn(inputs["encoder_hidden_states"].shape)
        targets = [torch.randn(level.shape) for level in inputs["sample"]]
    step = our_step(model, loss_of(model, inputs, targets, args.dtype))
    step()
    step()


def peak_of_training(recipe: Recipe, stage: StageRecipe, args: argparse.Namespace) -> int:
    """Bytes that the stage takes at most."""
    if args.device != "cuda":
        with LivingTensors() as living:
            train_two_steps(recipe, stage, args)
        return living.most
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    train_two_steps(recipe, stage, args)
    torch.cuda.synchronize()
    return torch.cuda.max_memory_allocated() - before


def measure(recipe: Recipe, stage: StageRecipe, args: argparse.Namespace) -> dict[str, Any]:
    """The end of one row of the table."""
    precision = "bf16" if args.dtype == "bf16" else "no"
    options = RunOptions(
        output_dir=Path("unused"), mixed_precision=precision, gradient_checkpointing=args.gradient_checkpointing
    )
    estimate = estimate_stage(recipe, stage, options, num_text_parameters=0)
    measured = peak_of_training(recipe, stage, args)
    parts = {f"{name}, MiB": value / MIB for name, value in vars(estimate).items() if value}
    return {
        "estimate, MiB": estimate.total / MIB,
        "measured, MiB": measured / MIB,
        "estimate / measured": estimate.total / measured,
        **parts,
    }


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    """The command's flags."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--recipe", default=str(ROOT / "training" / "recipes" / "emoji_64.yaml"))
    parser.add_argument("--batch_size", type=int, help="default: that of each stage")
    parser.add_argument("--gradient_checkpointing", action="store_true")
    add_machine_flags(parser)
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> None:
    """Measure every stage of a recipe."""
    args = parse_args(argv)
    recipe = load_recipe(args.recipe)
    machine = describe_machine(args.device, args.commit)
    results = Results(f"Memory of training, {args.dtype}", machine, args.output)
    for stage in recipe.stages:
        chosen = stage if args.batch_size is None else dataclasses.replace(stage, batch_size=args.batch_size)
        labels = {"stage": stage.name, "samples of each level": str(list(chosen.samples_per_level))}
        results.add(labels, partial(measure, recipe, chosen, args))
    results.finish()


if __name__ == "__main__":
    main()
