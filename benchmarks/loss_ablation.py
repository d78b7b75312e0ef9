# SPDX-License-Identifier: Apache-2.0
"""Compare losses at equal compute: the level of 16 pixels of a class-conditional model, several seeds of each.

Every variant trains for the same number of floating-point operations (those of matrix products and convolutions, which
do not depend on what else the machine does). It is then measured by what no variant minimises alone: the held-out
squared error of v at the noise levels of the published schedule, whatever its own schedule is, and the kernel distance
of features of Inception-v3 of generated images to those of held-out ones. The frozen network of alignment and of the
perceptual loss is a small classifier of the same images, which is trained first. Its operations are part of those of
these two, but not where it is "given", as encoders are that one downloads. A run that is cut off goes on where it was.

python benchmarks/loss_ablation.py --output_dir runs/losses
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import itertools
import json
import logging
import shutil
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch
from measuring import ROOT, count_flops, describe_machine
from sampling import standard_error

from diffusers_mdm import MatryoshkaScheduler, MDMClassConditionalPipeline
from diffusers_mdm.demo import best_device
from diffusers_mdm.evaluation.distances import kernel_distance
from diffusers_mdm.training.data.batch import Batch, to_unit_range
from diffusers_mdm.training.data.order import BatchOrder
from diffusers_mdm.training.data.sources import open_training_images, open_validation_images
from diffusers_mdm.training.extra_losses.frozen_networks import NETWORKS, FrozenNetwork, open_network, resized
from diffusers_mdm.training.loop.engine import run_recipe
from diffusers_mdm.training.recipe.loading import load_recipe
from diffusers_mdm.training.recipe.recipe import Recipe
from diffusers_mdm.training.recipe.stage import AlignmentRecipe, PerceptualRecipe
from diffusers_mdm.training.state.run import RunOptions

CLASS_RECIPE = ROOT / "training" / "recipes" / "emoji_subgroups_class.yaml"
NUM_NOISE_LEVELS = 16
INCEPTION_SIDE = 75  # the smallest; 16 pixels have no more details


@dataclass(frozen=True)
class Variant:
    """A loss: fields of the stage, of the scheduler and of the recipe that differ, and whether the operations of the
    classifier's training are its own.
    """

    stage: Mapping[str, Any] = field(default_factory=dict)
    scheduler: Mapping[str, Any] = field(default_factory=dict)
    recipe: Mapping[str, Any] = field(default_factory=dict)
    trains_classifier: bool = False


V = {"loss_weighting": "v"}
ALIGNMENT = {"alignment": AlignmentRecipe("classifier", hidden_channels=128)}
PERCEPTUAL = {"perceptual": PerceptualRecipe("classifier")}
PLAIN = "epsilon (published)"
VARIANTS = {
    PLAIN: Variant(),
    "v": Variant(V),
    "v, min-SNR 5": Variant({**V, "snr_gamma": 5.0}),
    "epsilon, P2": Variant({"p2_gamma": 1.0}),
    "sigmoid, bias 0": Variant({"loss_weighting": "sigmoid", "sigmoid_bias": 0.0}),
    "sigmoid, bias -2": Variant({"loss_weighting": "sigmoid", "sigmoid_bias": -2.0}),
    "v, rectified flow": Variant(V, {"beta_schedule": "rectified_flow"}),
    "v, alignment": Variant(V, recipe=ALIGNMENT, trains_classifier=True),
    "v, perceptual": Variant(V, recipe=PERCEPTUAL, trains_classifier=True),
    "v, alignment, classifier given": Variant(V, recipe=ALIGNMENT),
    "v, perceptual, classifier given": Variant(V, recipe=PERCEPTUAL),
}


def small_recipe(recipe: Recipe, channels: Sequence[int], batch_size: int) -> Recipe:
    """Return the recipe of the innermost level alone, with this width and batch size."""
    level = {**recipe.levels[0], "block_out_channels": list(channels)}
    stage = dataclasses.replace(recipe.stages[0], batch_size=batch_size)
    scheduler = {**recipe.scheduler, "prediction_type": "v_prediction"}
    return dataclasses.replace(recipe, levels=(level,), stages=(stage,), scheduler=scheduler)


def variant_recipe(recipe: Recipe, variant: Variant, steps: int) -> Recipe:
    """Return the recipe of a variant, of `steps` optimizer steps."""
    settings = {"timestep_bias_strategy": "none", "loss_weighting": "epsilon", **variant.stage, "steps": steps}
    return dataclasses.replace(
        recipe,
        stages=(dataclasses.replace(recipe.stages[0], **settings),),
        scheduler={**recipe.scheduler, **variant.scheduler},
        validation=dataclasses.replace(recipe.validation, prompts=()),
        data=recipe.data.with_fields(validation_split=None),
        **variant.recipe,
    )


class Classifier(torch.nn.Module):
    """A small convolutional classifier, whose layers are the maps of a `FrozenNetwork`."""

    side = 16

    def __init__(self, num_classes: int):
        super().__init__()
        widths = (3, 48, 96, 192)
        self.layers = torch.nn.ModuleList(
            torch.nn.Sequential(
                torch.nn.Conv2d(before, after, 3, stride=1 if before == 3 else 2, padding=1),
                torch.nn.GroupNorm(8, after),
                torch.nn.SiLU(),
            )
            for before, after in itertools.pairwise(widths)
        )
        self.head = torch.nn.Linear(widths[-1], num_classes)

    def forward(self, images: torch.Tensor) -> list[torch.Tensor]:
        """Return the maps of all layers, of images `(B, 3, 16, 16)` in [-1, 1]."""
        maps = [images]
        for layer in self.layers:
            maps.append(layer(maps[-1]))
        return maps[1:]


def trained_classifier(recipe: Recipe, steps: int) -> Classifier:
    """Return a classifier that was trained on the training images, frozen."""
    torch.manual_seed(0)
    network = Classifier(int(recipe.model["num_class_embeds"]))
    optimizer = torch.optim.AdamW(network.parameters(), lr=2e-3, weight_decay=0.01)
    images = open_training_images(recipe.data, Classifier.side)
    with contextlib.closing(images.batches(BatchOrder(64, 1, 0, 1, 0), 0, 0)) as batches:
        for batch in itertools.islice(batches, steps):
            scores = network.head(network(to_unit_range(batch.pixels))[-1].mean((2, 3)))
            torch.nn.functional.cross_entropy(scores, batch.class_labels).backward()
            optimizer.step()
            optimizer.zero_grad()
    return network.eval().requires_grad_(False)


def train(recipe: Recipe, output_dir: Path, seed: int) -> None:
    """Train a recipe, unless that is done."""
    if not (output_dir / "model_index.json").exists():
        run_recipe(recipe, RunOptions(output_dir, seed=seed, report_to=None, checkpoints_total_limit=1))


def operations_per_step(recipe: Recipe, variant: Variant, folder: Path) -> int:
    """Return the operations of an optimizer step: the difference of runs of two steps and of one."""
    counts = []
    for steps in (1, 2):
        shutil.rmtree(folder, ignore_errors=True)
        counts.append(count_flops(partial(train, variant_recipe(recipe, variant, steps), folder, 0)))
    shutil.rmtree(folder, ignore_errors=True)
    return counts[1] - counts[0]


def operations_of(names: Iterable[str], recipe: Recipe, folder: Path) -> dict[str, int]:
    """Return the operations of a step of each variant, counted once for all that only weight errors differently."""
    counted: dict[tuple[Any, ...], int] = {}
    costs = {}
    for name in names:
        kind = tuple(VARIANTS[name].recipe.items())
        if kind not in counted:
            counted[kind] = operations_per_step(recipe, VARIANTS[name], folder)
        costs[name] = counted[kind]
    return costs


def equal_steps(costs: Mapping[str, int], steps: int, classifier: int) -> dict[str, int]:
    """Return for how many steps each variant trains.

    Args:
        costs: operations of a step of each variant, and of the plain loss.
        steps: number of steps of the plain loss.
        classifier: operations of the training of the classifier.
    """
    total = steps * costs[PLAIN]
    spent = {name: classifier if VARIANTS[name].trains_classifier else 0 for name in costs}
    return {name: max(1, round((total - spent[name]) / cost)) for name, cost in costs.items()}


@torch.no_grad()
def held_out_error(pipeline: MDMClassConditionalPipeline, truth: Batch) -> float:
    """Return the mean squared error of v on held-out images, over the noise levels of the published schedule.

    They are those at evenly spaced t; the noise is the same for all models.
    """
    published = torch.logit(MatryoshkaScheduler().alphas_cumprod.cpu().double())
    own = torch.logit(pipeline.scheduler.alphas_cumprod.cpu().double())
    places = (torch.arange(NUM_NOISE_LEVELS) * 2 + 1) * len(published) // (2 * NUM_NOISE_LEVELS)
    clean = to_unit_range(truth.pixels)
    generator, errors = torch.Generator().manual_seed(0), []
    for log_snr in published[places]:
        timestep = (own - log_snr).abs().argmin()
        noise = torch.randn(clean.shape, generator=generator)
        timesteps = timestep.expand(len(clean))
        noisy, v = (
            mix(clean, noise, timesteps) for mix in (pipeline.scheduler.add_noise, pipeline.scheduler.get_velocity)
        )
        for rows in torch.arange(len(clean)).split(64):
            found = pipeline.unet(noisy[rows], timesteps[rows], class_labels=truth.class_labels[rows]).sample
            errors.append((found - v[rows]).square().mean().item() * len(rows))
    return sum(errors) / (len(clean) * NUM_NOISE_LEVELS)


@torch.no_grad()
def features(network: FrozenNetwork, images: torch.Tensor) -> torch.Tensor:
    """Return mean features `(N, D)` of the last map, of images `(N, 3, H, W)` in [-1, 1]."""
    parts = [network(resized(part, network.side))[-1].mean((2, 3)) for part in images.split(64)]
    return torch.cat(parts)


def measured(model_dir: Path, truth: Batch, network: FrozenNetwork, real: torch.Tensor) -> dict[str, float]:
    """Return the held-out error of a model, and the kernel distance of its images, one for each held-out class."""
    pipeline = MDMClassConditionalPipeline.from_pretrained(model_dir)
    pipeline.set_progress_bar_config(disable=True)
    drawn = []
    for number, labels in enumerate(truth.class_labels.split(64)):
        generator = torch.Generator().manual_seed(number)
        images = pipeline(
            labels.tolist(), num_inference_steps=25, guidance_scale=1.0, generator=generator, output_type="pt"
        )
        drawn.append(images.images * 2 - 1)
    distance = kernel_distance(features(network, torch.cat(drawn)), real)
    return {"held_out_v": held_out_error(pipeline, truth), "kernel_distance": distance.mean}


def held_out(recipe: Recipe, number: int) -> Batch:
    """Return `number` held-out images at the side of level 0, evenly spread."""
    images = open_validation_images(recipe.data, recipe.sample_size)
    if images is None:
        raise ValueError("The recipe has no held-out data: set `data.validation_split`.")
    return images.load([index * len(images) // number for index in range(number)])


def table(variants: Mapping[str, Mapping[str, Any]]) -> str:
    """Return a Markdown table of means and standard errors, and of the differences from the first variant within each
    seed, which do not depend on how good a seed is for all of them.
    """
    plain = next(iter(variants.values()))["runs"]
    lines = [
        "| loss | steps | held-out error of v | difference | kernel distance | difference |",
        "|---|--:|--:|--:|--:|--:|",
    ]
    for name, found in variants.items():
        cells = [name, str(found["steps"])]
        for key in ("held_out_v", "kernel_distance"):
            values = [run[key] for run in found["runs"]]
            differences = [value - run[key] for value, run in zip(values, plain, strict=False)]
            cells += [spelled(values, ".4f"), "" if found["runs"] is plain else spelled(differences, "+.4f")]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def spelled(values: Sequence[float], form: str) -> str:
    """Return the mean of values of several seeds, with its standard error if there is more than one."""
    error = f" ± {standard_error(values):.4f}" if len(values) > 1 else ""
    return f"{statistics.fmean(values):{form}}{error}"


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--recipe", type=Path, default=CLASS_RECIPE, help="of a class-conditional model")
    parser.add_argument("--output_dir", type=Path, required=True)
    parser.add_argument("--variants", nargs="+", choices=list(VARIANTS), default=list(VARIANTS), metavar="NAME")
    parser.add_argument("--num_seeds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=300, help="of the published loss, whose operations all have")
    parser.add_argument("--channels", type=int, nargs="+", default=[16, 32, 48])
    parser.add_argument("--batch_size", type=int, default=32)
    parser.add_argument("--classifier_steps", type=int, default=200)
    parser.add_argument("--num_images", type=int, default=320, help="held-out images, and images generated")
    return parser.parse_args(argv)


def opened_report(file: Path, args: argparse.Namespace) -> dict[str, Any]:
    """Return the report of a run that was cut off, or a new one.

    Raises:
        ValueError: the run had other settings.
    """
    names = ("recipe", "steps", "channels", "batch_size", "classifier_steps", "num_images")
    settings = json.loads(json.dumps({name: getattr(args, name) for name in names}, default=lambda path: path.name))
    if not file.exists():
        return {"machine": describe_machine(best_device()), "settings": settings, "variants": {}}
    report: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
    if report["settings"] != settings:
        raise ValueError(f"{file} has the settings {report['settings']}, not {settings}; choose another folder.")
    return report


def main(argv: list[str] | None = None) -> None:
    """Train and measure all variants, one seed after another; write the numbers after each and print them."""
    args = parse_args(argv)
    logging.basicConfig(level=logging.WARNING)
    file = args.output_dir / "loss_ablation.json"
    report = opened_report(file, args)
    recipe = small_recipe(load_recipe(args.recipe), args.channels, args.batch_size)
    truth, network = held_out(recipe, args.num_images), open_network("inception", INCEPTION_SIDE, "cpu")
    real = features(network, to_unit_range(truth.pixels))
    trained: list[Classifier] = []
    spent = count_flops(lambda: trained.append(trained_classifier(recipe, args.classifier_steps)))
    NETWORKS["classifier"] = lambda side, device: trained[0]
    costs = operations_of(dict.fromkeys([PLAIN, *args.variants]), recipe, args.output_dir / "counted")
    steps, model_dir = equal_steps(costs, args.steps, spent), args.output_dir / "model"
    for seed, name in itertools.product(range(args.num_seeds), args.variants):
        found = report["variants"].setdefault(name, {"operations_per_step": costs[name], "steps": steps[name]})
        runs = found.setdefault("runs", [])
        if len(runs) > seed:
            continue
        shutil.rmtree(model_dir, ignore_errors=True)
        train(variant_recipe(recipe, VARIANTS[name], steps[name]), model_dir, seed)
        runs.append(measured(model_dir, truth, network, real))
        file.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
        print(name, seed, runs[-1], f"{steps[name]} steps", flush=True)
    print(table(report["variants"]))


if __name__ == "__main__":
    main()
