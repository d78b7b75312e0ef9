# SPDX-License-Identifier: Apache-2.0
"""Measure what an outer level should predict, and of which shape it should be.

The recipe's inner level is trained once. From it starts every variant of the outer level, with several seeds, on the
same number of images. Then each generates images for the same captions of the training data from the same noise, which
are measured as in `sampling.py`. A run that is cut off continues where it was.

python benchmarks/outer_levels.py --output_dir runs/outer_levels --mixed_precision bf16
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import logging
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import torch
from measuring import EMOJI_RECIPE, describe_machine, write_numbers
from sampling import EVEN, PAIR, Setting, drawn_in, load_truth, measure, prepared, standard_error

from diffusers_mdm import MatryoshkaScheduler, MDMPipeline
from diffusers_mdm.demo import best_device
from diffusers_mdm.evaluation.generate import generate, open_levels
from diffusers_mdm.evaluation.images import batches_of
from diffusers_mdm.schedulers.predictions import level_predictions
from diffusers_mdm.training.loop.engine import run_recipe
from diffusers_mdm.training.recipe.data import TableData
from diffusers_mdm.training.recipe.loading import load_recipe
from diffusers_mdm.training.recipe.pretrained import PretrainedRecipe
from diffusers_mdm.training.recipe.recipe import Recipe
from diffusers_mdm.training.recipe.text_encoder import TextEncoderRecipe
from diffusers_mdm.training.state.run import RunOptions


@dataclass(frozen=True)
class Variant:
    """An outer level.

    Attributes:
        prediction: what it predicts; the inner level predicts v.
        level: fields of `LevelConfig` that differ from the recipe's.
        snr_gamma: of the loss; None for the squared error of v.
    """

    prediction: str
    level: Mapping[str, Any] = field(default_factory=dict)
    snr_gamma: float | None = 5.0


VARIANTS = {
    "v": Variant("v_prediction"),
    "sample": Variant("sample"),
    "residual": Variant("residual"),
    "sample_residual": Variant("sample_residual"),
    "sample, plain weights": Variant("sample", snr_gamma=None),
    "sample, wider": Variant("sample", {"block_out_channels": [64, 96]}),
    "sample, no patches": Variant(
        "sample",
        {
            "block_out_channels": [16, 32, 48],
            "layers_per_block": [1, 1, 1],
            "attention_layers_per_block": [0, 0, 0],
            "patch_size": 1,
        },
    ),
}
SETTINGS: dict[str, Setting] = {
    "25 DDIM": drawn_in(25, {}),
    "12 DDIM, log SNR": drawn_in(12, EVEN),
    "12 2M, log SNR, agree": drawn_in(12, PAIR, level_agreement=1.0),
}


def inner_recipe(recipe: Recipe, steps: int | None) -> Recipe:
    """Return the recipe of the inner level alone."""
    stage = dataclasses.replace(recipe.stages[0], steps=steps or recipe.stages[0].steps)
    scheduler = {**recipe.scheduler, "prediction_type": "v_prediction"}
    return dataclasses.replace(recipe, levels=recipe.levels[:1], stages=(stage,), scheduler=scheduler)


def save_inner_level(model_dir: Path, inner_dir: Path) -> None:
    """Save the innermost level of a pipeline as a pipeline, unless that is done."""
    if not (inner_dir / "model_index.json").exists():
        pipeline = MDMPipeline.from_pretrained(model_dir, dtype=torch.float32)
        kind = level_predictions(pipeline.scheduler.config["prediction_type"], 1)[0]
        scheduler = MatryoshkaScheduler.from_config(pipeline.scheduler.config, prediction_type=kind)
        MDMPipeline.from_pipe(pipeline, unet=pipeline.unet.inner_model(1), scheduler=scheduler).save_pretrained(
            inner_dir
        )


def outer_recipe(recipe: Recipe, variant: Variant, inner_dir: Path, args: argparse.Namespace) -> Recipe:
    """Return the recipe of a variant, which starts from the pipeline in `inner_dir`; flags override its stage."""
    flags = {
        "steps": args.outer_steps,
        "batch_size": args.outer_batch_size,
        "lr_warmup_steps": args.outer_warmup_steps,
        "ema_decay": args.outer_ema_decay,
    }
    given = {name: value for name, value in flags.items() if value is not None}
    stage = dataclasses.replace(recipe.stages[1], snr_gamma=variant.snr_gamma, **given)
    encoder = recipe.text_encoder
    if encoder is not None:
        encoder = TextEncoderRecipe(
            from_pipeline=True,
            train_text_encoder=encoder.train_text_encoder,
            token_learning_rate_scale=encoder.token_learning_rate_scale,
        )
    return dataclasses.replace(
        recipe,
        levels=(recipe.levels[0], {**recipe.levels[1], **variant.level}),
        stages=(stage,),
        scheduler={**recipe.scheduler, "prediction_type": ["v_prediction", variant.prediction]},
        pretrained=PretrainedRecipe(str(inner_dir)),
        text_encoder=encoder,
    )


def train(recipe: Recipe, output_dir: Path, seed: int, mixed_precision: str | None) -> None:
    """Train a recipe, unless that is done."""
    if not (output_dir / "model_index.json").exists():
        options = RunOptions(
            output_dir,
            seed=seed,
            mixed_precision=mixed_precision,
            report_to=None,
            checkpoints_total_limit=1,
            validation_steps=10**9,
        )
        run_recipe(recipe, options)


def measured(model_dir: Path, data_dir: Path, num_captions: int, batch_size: int) -> dict[str, dict[str, float]]:
    """Return the measures of a model's images, by setting."""
    pipeline = MDMPipeline.from_pretrained(model_dir).to(best_device())
    truth = load_truth(data_dir, pipeline.unet.sample_sizes[-1], num_captions)
    found = {}
    for number, (name, setting) in enumerate(SETTINGS.items()):
        folder = model_dir / "generated" / str(number)
        drawing = prepared(pipeline, setting)
        generate(drawing, truth.captions, folder, json.dumps(dict(setting.scheduler)), 0, batch_size, setting.call)
        levels = [torch.cat(list(batches_of(level, batch_size))) for level in open_levels(folder)]
        found[name] = measure(levels, truth)
    return found


def summarised(runs: Sequence[Mapping[str, Mapping[str, float]]]) -> dict[str, dict[str, list[float]]]:
    """Return mean and standard error over seeds of every measure, by setting."""
    return {
        setting: {
            name: [statistics.fmean(values), standard_error(values)]
            for name in runs[0][setting]
            for values in [[run[setting][name] for run in runs]]
        }
        for setting in runs[0]
    }


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--recipe", type=Path, default=EMOJI_RECIPE, help="with an inner and an outer stage")
    parser.add_argument("--output_dir", type=Path, required=True)
    parser.add_argument("--variants", nargs="+", choices=list(VARIANTS), default=list(VARIANTS), metavar="NAME")
    parser.add_argument("--num_seeds", type=int, default=3)
    parser.add_argument("--inner_steps", type=int, help="instead of those of the recipe")
    parser.add_argument(
        "--inner_from", type=Path, help="pipeline whose innermost level to use, in place of training one"
    )
    parser.add_argument("--outer_steps", type=int, help="the same for every variant; so are the following")
    parser.add_argument("--outer_batch_size", type=int)
    parser.add_argument("--outer_warmup_steps", type=int)
    parser.add_argument("--outer_ema_decay", type=float)
    parser.add_argument("--num_captions", type=int, default=128)
    parser.add_argument("--batch_size", type=int, default=64, help="images generated together")
    parser.add_argument("--mixed_precision", choices=["no", "fp16", "bf16"])
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> None:
    """Train and measure all variants; write the numbers after each and print them."""
    args = parse_args(argv)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s", datefmt="%H:%M:%S")
    recipe = load_recipe(args.recipe)
    inner_dir = args.output_dir / "inner"
    if args.inner_from is not None:
        save_inner_level(args.inner_from, inner_dir)
    train(inner_recipe(recipe, args.inner_steps), inner_dir, 0, args.mixed_precision)
    data_dir = Path(cast(TableData, recipe.data).path)
    report: dict[str, Any] = {"machine": describe_machine(best_device())}
    for name in args.variants:
        runs = []
        for seed in range(args.num_seeds):
            model_dir = args.output_dir / name.replace(",", "").replace(" ", "-") / str(seed)
            outer = outer_recipe(recipe, VARIANTS[name], inner_dir, args)
            train(outer, model_dir, seed, args.mixed_precision)
            runs.append(measured(model_dir, data_dir, args.num_captions, args.batch_size))
        report[name] = summarised(runs)
        write_numbers(args.output_dir / "outer_levels.json", report)
        for setting, values in report[name].items():
            print(f"{name}; {setting}: " + ", ".join(f"{key} {m:.4f} ± {e:.4f}" for key, (m, e) in values.items()))


if __name__ == "__main__":
    main()
