# SPDX-License-Identifier: Apache-2.0
"""Train and measure the rows of the report. What is done is kept; what the time does not suffice for is named.

python -m benchmarks.paper.run --output_dir runs/paper --hours 2
"""

from __future__ import annotations

import argparse
import dataclasses
import functools
import itertools
import json
import logging
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, cast

import datasets
import torch
from PIL import Image

from benchmarks.measuring import describe_machine
from benchmarks.paper.measures import measure, sliced_wasserstein
from benchmarks.paper.methods import (
    AUTOENCODER,
    BASE,
    PARTS,
    RECIPES,
    SIDE,
    autoencoder_flops_per_image,
    changed,
    flops_per_image,
    recipes_of,
)
from benchmarks.paper.rows import EMOJI, METHODS, ROWS, Row
from benchmarks.paper.shared_features import Way, without_features
from diffusers_mdm import DiffusionPipeline
from diffusers_mdm.training.data.sources import open_training_images
from diffusers_mdm.training.loop.autoencoder import train_autoencoder
from diffusers_mdm.training.loop.engine import run_recipe
from diffusers_mdm.training.recipe.data import DataRecipe, TableData
from diffusers_mdm.training.recipe.loading import load_recipe
from diffusers_mdm.training.recipe.recipe import Recipe
from diffusers_mdm.training.state.complete_folders import complete_folder
from diffusers_mdm.training.state.history import FILE_NAME, History
from diffusers_mdm.training.state.run import RunOptions

logger = logging.getLogger(__name__)

RESULTS, DONE = "results.jsonl", "done"
KEYS = ("row", "data", "seed", "images", "drawing")  # which tell results apart
# Fractions of the images after which methods are measured; all other rows are measured after all images only.
FRACTIONS = {EMOJI: (0.25, 0.5, 1.0)}
AUTOENCODER_SHARE = 0.5  # of the images
STEPS_OF_DRAWINGS, NOISE_LEVEL = 12, 0.1
NUM_SHOWN = 8
NEAR = 0.1  # numbers of operations within this share of each other count as equal


@dataclasses.dataclass(frozen=True)
class Settings:
    """The scale of the comparison.

    Attributes:
        output_dir: folder of the runs and results.
        images: images that each row is trained on, repeated ones counted; the autoencoder sees a share of them.
        num_different: images of the training data at most.
        num_drawn: drawn images, and held-out ones that they are compared with.
        seeds: number of seeds of each row.
        birds: folder of photographs; None skips their rows.
    """

    output_dir: Path
    images: int = 2048
    num_different: int = 1024
    num_drawn: int = 64
    seeds: int = 3
    birds: Path | None = None


@dataclasses.dataclass(frozen=True)
class Images:
    """A data set.

    Attributes:
        data: its recipe.
        classes: number of classes; None for none.
        held_out: `(B, 3, S, S)` in [0, 1].
        labels: of the held-out images.
        trained_on: the same number of training images.
        floor: distance of these two: a perfect model's.
    """

    data: DataRecipe
    classes: int | None
    held_out: torch.Tensor
    labels: tuple[int, ...]
    trained_on: torch.Tensor
    floor: float


@functools.lru_cache
def open_images(settings: Settings, name: str, share: float) -> Images:
    """Open a data set, and choose the images that drawings are compared with."""
    data, number = chosen_images(settings, name)
    data = dataclasses.replace(data, max_train_samples=max(1, round(number * share)))
    held = dataclasses.replace(data, train_split=cast(str, data.validation_split), max_train_samples=None)
    held_out, labels = _spread(held, settings.num_drawn)
    classes = 4 if data.label_column is not None else None
    trained_on = _spread(data, len(held_out))[0]
    number = min(len(trained_on), len(held_out))
    floor = sliced_wasserstein(trained_on[:number], held_out[:number])
    return Images(data, classes, held_out, labels, trained_on, sum(floor) / len(floor))


def chosen_images(settings: Settings, name: str) -> tuple[TableData, int]:
    """Write the shuffled images that are trained on, and the held-out ones, into a folder, and count the former."""
    data = cast(TableData, load_recipe(RECIPES / "mdm.yaml").data)
    if name != EMOJI:
        data = dataclasses.replace(data, path=str(settings.birds), label_column=None)
    folder = settings.output_dir / f"{name}-images"
    if not folder.exists():
        with complete_folder(folder) as beside:
            for split in (data.train_split, cast(str, data.validation_split)):
                images = datasets.load_dataset(data.path, split=split).shuffle(seed=0)
                number = min(len(images), settings.num_different)
                images.select(range(number)).to_parquet(beside / f"{split}.parquet")
    number = len(datasets.load_dataset(str(folder), split=data.train_split))
    return dataclasses.replace(data, path=str(folder)), number


def _spread(data: DataRecipe, number: int) -> tuple[torch.Tensor, tuple[int, ...]]:
    """Return images spread evenly over a split, and their labels."""
    images = cast(Any, open_training_images(data, SIDE)).images
    number = min(number, len(images))
    batch = images.load([index * len(images) // number for index in range(number)])
    labels = () if batch.class_labels is None else tuple(batch.class_labels.tolist())
    return batch.pixels.float() / 255, labels


def autoencoder_of(settings: Settings, images: Images, name: str) -> Path:
    """Return the folder of a data set's autoencoder, which is trained if it is not there."""
    folder = settings.output_dir / f"{name}-autoencoder"
    if not folder.exists():
        steps = max(1, round(settings.images * AUTOENCODER_SHARE) // AUTOENCODER.batch_size)
        train_autoencoder(dataclasses.replace(AUTOENCODER, steps=steps), images.data, folder)
    return folder


def points_of(row: Row, recipes: Sequence[Recipe], per_image: float, budget: float, settings: Settings) -> list[int]:
    """Return after how many steps a row is measured: fractions of the images, and where its operations are the budget.

    The last two are one if they are within a tenth.

    Args:
        row: the row.
        recipes: of its parts, which all see the same images.
        per_image: operations of an image, of all parts together.
        budget: operations.
        settings: the number of images.
    """
    batch = recipes[0].stages[-1].images_per_step
    fractions = FRACTIONS.get(row.data, (1.0,)) if row.group == METHODS else (1.0,)
    counts = [settings.images * fraction for fraction in fractions]
    if abs(budget / per_image / settings.images - 1) >= NEAR:
        counts.append(budget / per_image)
    return sorted({max(1, round(count / batch)) for count in counts})


def draw(folders: Sequence[Path], images: Images, number: int, **changes: Any) -> torch.Tensor:
    """Draw images with the pipelines of a row's parts, one after the other: `(B, 3, S, S)` in [0, 1].

    Args:
        folders: of the pipelines.
        images: whose classes are drawn.
        number: of images.
        changes: of the arguments of the first pipeline.
    """
    drawn: list[torch.Tensor] = []
    pipelines = [DiffusionPipeline.from_pretrained(folder) for folder in folders]
    for pipeline in pipelines:
        pipeline.set_progress_bar_config(disable=True)
    for start in range(0, number, 64):
        seeds = [torch.Generator().manual_seed(index) for index in range(start, min(start + 64, number))]
        call: dict[str, Any] = {"num_inference_steps": STEPS_OF_DRAWINGS, "generator": seeds, "output_type": "pt"}
        if images.classes is not None:
            call |= {"class_labels": list(images.labels[start : start + 64]), "guidance_scale": 1.0}
        else:
            call |= {"batch_size": len(seeds)}
        batch = pipelines[0](**{**call, **changes}).images
        for upscaler in pipelines[1:]:
            call.pop("batch_size", None)
            batch = upscaler(image=batch, noise_level=NOISE_LEVEL, **{"guidance_scale": 1.0, **call}).images
        drawn.append(batch)
    return torch.cat(drawn)


def save_strip(images: torch.Tensor, file: Path) -> None:
    """Save images `(B, 3, S, S)` in [0, 1] side by side."""
    pixels = torch.cat(list(images), dim=2).mul(255).round().to(torch.uint8)
    Image.fromarray(pixels.permute(1, 2, 0).numpy()).save(file)


def run_row(settings: Settings, row: Row, seed: int, is_over: Callable[[], bool]) -> Iterator[dict[str, Any]]:
    """Train a row with one seed, and yield its measures at every point; no further points if the time is over."""
    images = open_images(settings, row.data, row.changes.data_share)
    vae = autoencoder_of(settings, images, row.data) if row.method == "latent" else None
    recipes = recipes_of(row.method, images.data, images.classes, vae)
    reference = recipes_of("mdm", images.data, images.classes, None)[0]
    budget = settings.images * flops_per_image(reference, reference.stages[-1])
    before = 0.0 if vae is None else settings.images * AUTOENCODER_SHARE * autoencoder_flops_per_image()
    lacks = row.changes.no_features
    each = sum(flops_per_image(recipe, changed(recipe, row.changes, 1).stages[-1], lacks) for recipe in recipes)
    points = points_of(row, recipes, each, budget - before, settings)
    # Stages of different costs have no points in between.
    for steps in points[-1:] if row.changes.inner_share else points:
        folder = settings.output_dir / row.folder / str(seed)
        if (folder / f"measured-{steps}").exists():
            continue
        if is_over():
            return
        start, parts = time.process_time(), [changed(recipe, row.changes, steps) for recipe in recipes]
        folders = [folder / name for name in PARTS[row.method]]
        with without_features(lacks):
            for recipe, part in zip(parts, folders, strict=True):
                train(recipe, part, seed, points[-1])
        seconds = time.process_time() - start
        done = [steps_done(part) for part in folders]
        entry = {
            "row": row.name,
            "data": row.data,
            "seed": seed,
            "images": max(images_of(*pair) for pair in zip(parts, done, strict=True)),
            "flops": before + sum(flops_of(*pair, lacks) for pair in zip(parts, done, strict=True)),
            "seconds": seconds,
            "held_out_loss": held_out_loss(folders[-1]),
            "floor": images.floor,
        }
        strip = settings.output_dir / f"{row.data}-held-out.png"
        if row.data == EMOJI and not strip.exists():  # the photographs may be under another licence
            save_strip(images.held_out[:NUM_SHOWN], strip)
        for name, call in {"": {}, **(row.drawings if steps == points[-1] else {})}.items():
            drawn = draw(folders, images, len(images.held_out), **call)
            save_strip(drawn[:NUM_SHOWN], folder / (f"{name} drawn.png".strip().replace(" ", "-")))
            measures = measure(drawn, images.held_out, images.trained_on, images.labels)
            yield {**entry, "drawing": name, **measures}
        (folder / f"measured-{steps}").touch()
    (folder / DONE).touch()


def train(recipe: Recipe, folder: Path, seed: int, last_step: int) -> None:
    """Train a recipe on from where its folder is, with about eight lines in its log."""
    options = RunOptions(
        folder,
        seed=seed,
        report_to=None,
        checkpoints_total_limit=1,
        checkpointing_steps=10**9,
        validation_steps=10**9,
        logging_steps=max(1, last_step // 8),
    )
    run_recipe(recipe, options)


def steps_done(folder: Path) -> list[int]:
    """Return how many steps the stages of a run had; the first one may have ended early."""
    last: dict[str, int] = {}
    for line in History(folder / FILE_NAME).read():
        last[line["stage"]] = max(line["step"], last.get(line["stage"], 0))
    return [step - before for before, step in itertools.pairwise([0, *last.values()])]


def images_of(recipe: Recipe, steps: Sequence[int]) -> int:
    """Count the images of the steps of all stages."""
    return sum(stage.images_per_step * number for stage, number in zip(recipe.stages, steps, strict=True))


def flops_of(recipe: Recipe, steps: Sequence[int], no_features: tuple[Way, ...] = ()) -> float:
    """Count the operations of the steps of all stages."""
    return sum(
        flops_per_image(recipe, stage, no_features) * stage.images_per_step * number
        for stage, number in zip(recipe.stages, steps, strict=True)
    )


def held_out_loss(folder: Path) -> list[float]:
    """Return the last validation loss of a run, one number per level, innermost first."""
    names = [f"validation_loss/level_{level}" for level in range(2)]
    lines = [line for line in History(folder / FILE_NAME).read() if names[0] in line]
    return [lines[-1][name] for name in names if name in lines[-1]] if lines else []


def measured(output_dir: Path) -> list[dict[str, Any]]:
    """Return the results so far."""
    file = output_dir / RESULTS
    return [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()] if file.exists() else []


def is_done(settings: Settings, row: Row, seed: int) -> bool:
    """Return whether a row was measured with a seed up to its last point."""
    return (settings.output_dir / row.folder / str(seed) / DONE).exists()


def in_order(rows: Sequence[Row], seeds: int) -> Iterator[tuple[Row, int]]:
    """Yield rows and seeds: all rows of a question with one seed before the next seed, and one question at a time."""
    for _, together in itertools.groupby(rows, lambda row: (row.data, row.group)):
        yield from ((row, seed) for seed, row in itertools.product(range(seeds), list(together)))


def run_all(settings: Settings, seconds: float, rows: Sequence[Row] = ROWS) -> list[str]:
    """Run all rows until the time is over.

    Returns:
        The names of what was skipped, with the reason.
    """
    end, skipped = time.monotonic() + seconds, []

    def is_over() -> bool:
        return time.monotonic() > end

    for row, seed in in_order(rows, settings.seeds):
        name = f"{row.data}: {row.name}, seed {seed}"
        if is_done(settings, row, seed):
            continue
        if row.data != EMOJI and settings.birds is None:
            skipped.append(f"{name} (no --birds)")
        elif is_over() or not run_to_its_end(settings, row, seed, is_over):
            skipped.append(f"{name} (no time)")
    return skipped


def run_to_its_end(settings: Settings, row: Row, seed: int, is_over: Callable[[], bool]) -> bool:
    """Run a row with one seed, and write its results; return whether the time sufficed."""
    known = {tuple(entry[key] for key in KEYS) for entry in measured(settings.output_dir)}
    for entry in run_row(settings, row, seed, is_over):
        logger.info("%s", {key: value for key, value in entry.items() if key != "held_out_loss"})
        if tuple(entry[key] for key in KEYS) not in known:
            with (settings.output_dir / RESULTS).open("a", encoding="utf-8") as file:
                file.write(json.dumps(entry) + "\n")
    return is_done(settings, row, seed)


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--output_dir", type=Path, required=True)
    parser.add_argument("--hours", type=float, default=2.0, help="no point is begun after them (default 2)")
    parser.add_argument("--images", type=int, default=2048, help="that each row is trained on (default 2048)")
    parser.add_argument("--num_different", type=int, default=1024, help="different ones at most (default 1024)")
    parser.add_argument("--num_drawn", type=int, default=64, help="images that are drawn and compared (default 64)")
    parser.add_argument("--seeds", type=int, default=3, help="of each row (default 3)")
    parser.add_argument("--birds", type=Path, help="folder of photographs with a held-out split, for their rows")
    parser.add_argument("--rows", nargs="+", metavar="NAME", help="run only these")
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> None:
    """Run the rows and name what was skipped."""
    args = parse_args(argv)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s", datefmt="%H:%M:%S")
    settings = Settings(args.output_dir, args.images, args.num_different, args.num_drawn, args.seeds, args.birds)
    settings.output_dir.mkdir(parents=True, exist_ok=True)
    rows = [row for row in ROWS if args.rows is None or row.name in args.rows]
    skipped = run_all(settings, 3600 * args.hours, rows)
    described = {"machine": describe_machine("cpu"), "base": BASE, "skipped": skipped}
    (settings.output_dir / "skipped.json").write_text(json.dumps(described, indent=1) + "\n", encoding="utf-8")
    print("\n".join(["Skipped:", *skipped] if skipped else ["All rows are done."]))


if __name__ == "__main__":
    main()
