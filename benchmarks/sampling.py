# SPDX-License-Identifier: Apache-2.0
r"""Measure the quality and cost of sampling settings: steps, spacings, solvers, guidance, and what levels do.

Every setting generates images for the same captions of the training data from the same noise, once per seed. Images of
the outermost level are compared with the real images of their captions:

- noise: standard deviation of the pixels in corners that are white in the real image;
- distance: root mean square difference from the real image, mean over images;
- own image: fraction of images whose nearest image in the data set has the same caption;
- levels: root mean square difference between the outer level, averaged down, and the inner one;
- KID and FID of Inception-v3 features, with `--reference` (real images, of which those of the same captions are left
  out): the kernel distance of each seed's images, which is unbiased for few images; and the Fréchet distance of the
  images of all seeds, which is far too large for few images, by about the same for every setting. For comparison, that
  of as many real images is printed.

Costs are calls of the model and counted operations per image. Each measure has its standard error over seeds (of FID,
that of the jackknife), and each difference from the first setting that of the paired difference. The same command
continues an interrupted run, also with further settings:

python training/evaluate.py reference --data_dir training/data/emoji-styles-64 --split train --num_images 1000 \
  --sides 64 --output_dir runs/reference
python benchmarks/sampling.py --output_dir runs/sampling --reference runs/reference --num_captions 32 --num_seeds 3
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from matplotlib.figure import Figure
from measuring import ROOT, count_flops, describe_machine, open_training_split, write_numbers

from diffusers_mdm import InnerLevelCacheConfig, MatryoshkaScheduler, MDMPipeline
from diffusers_mdm.evaluation.distances import MIN_FRECHET, frechet_distance, kernel_distance_of_all
from diffusers_mdm.evaluation.features import FeatureExtractor, InceptionFeatures, extract
from diffusers_mdm.evaluation.generate import generate, open_levels
from diffusers_mdm.evaluation.images import batches_of
from diffusers_mdm.evaluation.levels import corner_noise, disagreement, pixel_distance
from diffusers_mdm.evaluation.reference import load_reference
from diffusers_mdm.evaluation.retrieval import retrieve, thumbnail
from diffusers_mdm.training.commands.evaluation.measure import choose

MODEL_DIR = ROOT / "model_cards" / "mdm-emoji-64"
DATA_DIR = ROOT / "training" / "data" / "emoji-styles-64"
EVEN = {"timestep_spacing": "log_snr"}
PAIR = {"timestep_spacing": "log_snr", "algorithm": "dpmsolver++"}
MEASURES = {"noise": "noise", "distance": "distance", "own": "own image", "levels": "levels"}
BY_FEATURES = {"kid": "KID", "fid": "FID"}
FEATURES_FILE = "inception.safetensors"


@dataclass(frozen=True)
class Setting:
    """A sampling setting.

    Attributes:
        call: arguments of the pipeline's call.
        scheduler: changes of the scheduler's config.
        reuse_every: n, the inner level runs in every n-th step; 1 for every step.
    """

    call: Mapping[str, Any]
    scheduler: Mapping[str, Any] = field(default_factory=dict)
    reuse_every: int = 1


def drawn_in(num_steps: int, scheduler: Mapping[str, Any], reuse_every: int = 1, **call: Any) -> Setting:
    """Return the setting with this number of steps, and a guidance scale of 2 unless `call` has another one."""
    return Setting({"num_inference_steps": num_steps, "guidance_scale": 2.0, **call}, scheduler, reuse_every)


SETTINGS: dict[str, Setting] = {
    # The one with which the others are compared.
    "12 DDIM, log SNR, guidance 1.5": drawn_in(12, EVEN, guidance_scale=1.5),
    # Steps, spacing and guidance scale.
    "25 DDIM, guidance 3": drawn_in(25, {}, guidance_scale=3.0),
    "25 DDIM": drawn_in(25, {}),
    "25 DDIM, guidance 1": drawn_in(25, {}, guidance_scale=1.0),
    "25 DDIM, log SNR": drawn_in(25, EVEN),
    "25 DDIM, log SNR, guidance 1.5": drawn_in(25, EVEN, guidance_scale=1.5),
    "12 DDIM, log SNR": drawn_in(12, EVEN),
    "12 DDIM, log SNR, guidance 1": drawn_in(12, EVEN, guidance_scale=1.0),
    "8 DDIM, log SNR, guidance 1.5": drawn_in(8, EVEN, guidance_scale=1.5),
    "8 DDIM, log SNR, guidance 1": drawn_in(8, EVEN, guidance_scale=1.0),
    "4 DDIM, log SNR, guidance 1.5": drawn_in(4, EVEN, guidance_scale=1.5),
    # The solver.
    "12 2M, log SNR": drawn_in(12, PAIR),
    "12 2M, log SNR, guidance 1.5": drawn_in(12, PAIR, guidance_scale=1.5),
    # Methods and scales of guidance.
    "12 DDIM, log SNR, guidance 1.5, interval -4 to 2": drawn_in(
        12, EVEN, guidance_scale=1.5, guider={"name": "interval", "low": -4.0, "high": 2.0}
    ),
    "12 DDIM, log SNR, guidance 1.5, projected": drawn_in(12, EVEN, guidance_scale=1.5, guider="projected"),
    "12 DDIM, log SNR, guidance 1.5, zero star": drawn_in(12, EVEN, guidance_scale=1.5, guider="zero_star"),
    "12 DDIM, log SNR, guidance 1.5, rescaled": drawn_in(12, EVEN, guidance_scale=1.5, guidance_rescale=0.7),
    "12 DDIM, log SNR, guidance 2 and 1": drawn_in(12, EVEN, guidance_scale=[2.0, 1.0]),
    "12 DDIM, log SNR, guidance 1 and 2": drawn_in(12, EVEN, guidance_scale=[1.0, 2.0]),
    # Levels: agreement, late opening, reuse, inner first.
    "25 DDIM, agree": drawn_in(25, {}, level_agreement=1.0),
    "12 2M, log SNR, agree": drawn_in(12, PAIR, level_agreement=1.0),
    "12 2M, log SNR, agree, open at -4": drawn_in(12, PAIR, level_agreement=1.0, open_levels_at=-4.0),
    "8 2M, log SNR, agree, open at -4": drawn_in(8, PAIR, level_agreement=1.0, open_levels_at=-4.0),
    "12 DDIM, log SNR, guidance 1.5, open at -4": drawn_in(12, EVEN, guidance_scale=1.5, open_levels_at=-4.0),
    "12 DDIM, log SNR, guidance 1.5, inner every 2nd": drawn_in(12, EVEN, 2, guidance_scale=1.5),
    "12 DDIM, log SNR, guidance 1.5, inner every 3rd": drawn_in(12, EVEN, 3, guidance_scale=1.5),
    "12 inner, then 4": drawn_in(4, PAIR, num_inner_steps=12),
}


@dataclass(frozen=True)
class Truth:
    """The real images with which generated ones are compared.

    Attributes:
        captions: N captions, for which images are generated.
        images: their images, `(N, 3, S, S)`, uint8.
        thumbnails: thumbnails of the whole data set, see `retrieval.thumbnail`.
        all_captions: captions of the whole data set.
    """

    captions: list[str]
    images: torch.Tensor
    thumbnails: torch.Tensor
    all_captions: list[str]


@dataclass(frozen=True)
class Real:
    """Features of real images, `(M, D)`, and the network that computes those of generated ones."""

    extractor: FeatureExtractor
    features: torch.Tensor

    def of_folder(self, folder: Path) -> torch.Tensor:
        """Return the features of the outermost level of generated images, which are computed once and kept there."""
        path = folder / FEATURES_FILE
        if not path.exists():
            found = extract(self.extractor, batches_of(open_levels(folder)[-1], 16))
            safetensors.torch.save_file({"features": found}, path)
        return safetensors.torch.load_file(path)["features"]


def load_real(reference: Path, truth: Truth) -> Real:
    """Read the features of real images, without those whose captions images are generated for."""
    loaded, given = load_reference(reference), set(truth.captions)
    others = [number for number, caption in enumerate(loaded.captions) if caption not in given]
    return Real(InceptionFeatures(), loaded.features["inception", truth.images.shape[-1]][others])


def load_truth(data_dir: Path, side: int, num_captions: int) -> Truth:
    """Read captions of the training data, the same every time, and all images."""
    images, captions = open_training_split(data_dir, side)
    numbers = choose(len(captions), num_captions, seed=0)
    batches = [range(start, min(start + 256, len(captions))) for start in range(0, len(captions), 256)]
    small = torch.cat([thumbnail(images.load(list(batch)).pixels) for batch in batches])
    return Truth([captions[number] for number in numbers], images.load(numbers).pixels, small, captions)


def prepared(pipeline: MDMPipeline, setting: Setting) -> MDMPipeline:
    """Return the pipeline with the scheduler of a setting; the model is shared, and its cache is set up."""
    scheduler = MatryoshkaScheduler.from_config(pipeline.scheduler.config, **setting.scheduler)
    other = MDMPipeline.from_pipe(pipeline, scheduler=scheduler)
    other.set_progress_bar_config(disable=True)
    pipeline.unet.disable_cache()
    if setting.reuse_every > 1:
        pipeline.unet.enable_cache(InnerLevelCacheConfig(scheduler, setting.reuse_every))
    return other


def costs(pipeline: MDMPipeline, setting: Setting, caption: str) -> dict[str, float]:
    """Count the calls of the model and the operations for one image."""
    calls: list[int] = []
    handle = pipeline.unet.register_forward_pre_hook(lambda module, args: calls.append(len(args[0][0])))
    drawing = prepared(pipeline, setting)
    generator = torch.Generator().manual_seed(0)
    operations = count_flops(lambda: drawing(caption, generator=generator, output_type="pt", **setting.call))
    handle.remove()
    return {"calls": sum(calls), "gigaflops": operations / 1e9}


def measure(levels: Sequence[torch.Tensor], truth: Truth) -> dict[str, float]:
    """Measure the images of one seed, `(N, 3, S, S)` uint8 per level, innermost first."""
    outer = levels[-1]
    return {
        "noise": corner_noise(outer, truth.images)[0],
        "distance": pixel_distance(outer, truth.images),
        "own": retrieve(outer, truth.captions, truth.thumbnails, truth.all_captions).own_image,
        "levels": disagreement(levels)[-1] if len(levels) > 1 else math.nan,
    }


def folder_of(output_dir: Path, name: str, seed: int) -> Path:
    """Return the folder for the images of a setting and seed."""
    return output_dir / name.replace(",", "").replace(" ", "-") / str(seed)


def drawn_levels(
    pipeline: MDMPipeline,
    name: str,
    setting: Setting,
    seed: int,
    captions: Sequence[str],
    output_dir: Path,
    batch_size: int,
) -> list[torch.Tensor]:
    """Generate the images of a setting and seed that are not there yet, and return all, `(N, 3, S, S)` per level."""
    folder = folder_of(output_dir, name, seed)
    reuse = {"reuse_every": setting.reuse_every} if setting.reuse_every > 1 else {}
    model = json.dumps({"scheduler": dict(setting.scheduler), **reuse})
    # Seeds of captions do not overlap.
    first = seed * 10_000
    generate(prepared(pipeline, setting), captions, folder, model, first, batch_size, setting.call)
    return [torch.cat(list(batches_of(level, batch_size))) for level in open_levels(folder)]


def by_features(drawn: Sequence[torch.Tensor], first: Sequence[torch.Tensor], real: Real) -> dict[str, list[float]]:
    """Compare the features of each seed's images with those of real images.

    Args:
        drawn: features of a setting's images, `(N, D)`, for each seed.
        first: those of the first setting.
        real: the features of real images.

    Returns:
        Kernel distance and Fréchet distance, and their differences from the first setting, each with standard error.
    """
    kernel, kernel_of_first = ([kernel_distance_of_all(one, real.features) for one in side] for side in (drawn, first))
    changes = [one - other for one, other in zip(kernel, kernel_of_first, strict=True)]
    whole, whole_of_first = (frechet_distance(torch.cat(list(side)), real.features) for side in (drawn, first))
    without, without_of_first = (frechet_without_each(side, real.features) for side in (drawn, first))
    gains = [one - other for one, other in zip(without, without_of_first, strict=True)]
    return {
        "kid": [statistics.fmean(kernel), standard_error(kernel)],
        "kid difference": [statistics.fmean(changes), standard_error(changes)],
        "fid": [whole, jackknife_error(without)],
        "fid difference": [whole - whole_of_first, jackknife_error(gains)],
    }


def frechet_without_each(drawn: Sequence[torch.Tensor], real: torch.Tensor) -> list[float]:
    """Return the Fréchet distance without the images of each seed; nothing if too few images are left."""
    others = [torch.cat([*drawn[:seed], *drawn[seed + 1 :]]) for seed in range(len(drawn)) if len(drawn) > 1]
    return [frechet_distance(some, real) for some in others if len(some) >= MIN_FRECHET]


def jackknife_error(values: Sequence[float]) -> float:
    """Return the standard error of a statistic, from its values without each part; NaN for fewer than two."""
    return (len(values) - 1) * standard_error(values) if len(values) > 1 else math.nan


def of_real_images(truth: Truth, real: Real, num_images: int) -> dict[str, Any]:
    """Measure real images like generated ones: those of the captions, and as many as were generated from the rest."""
    splits = [torch.randperm(len(real.features), generator=torch.Generator().manual_seed(seed)) for seed in range(8)]
    distances = [
        frechet_distance(real.features[order[:num_images]], real.features[order[num_images:]]) for order in splits
    ]
    own = torch.cat([real.extractor(images) for images in truth.images.split(16)])
    return {
        "kid": kernel_distance_of_all(own, real.features),
        "fid of others": [statistics.fmean(distances), statistics.stdev(distances)],
    }


def summarised(name: str, by_seed: Sequence[Mapping[str, float]], first: Sequence[Mapping[str, float]]) -> dict:
    """Return means over seeds and differences from the first setting, each with its standard error."""
    summary: dict[str, Any] = {"name": name}
    for measure_name in MEASURES:
        values = [entry[measure_name] for entry in by_seed]
        gains = [entry[measure_name] - other[measure_name] for entry, other in zip(by_seed, first, strict=False)]
        summary[measure_name] = [statistics.fmean(values), standard_error(values)]
        summary[f"{measure_name} difference"] = [statistics.fmean(gains), standard_error(gains)]
    return summary


def standard_error(values: Sequence[float]) -> float:
    """Return the standard error of the mean; NaN for a single value."""
    return statistics.stdev(values) / len(values) ** 0.5 if len(values) > 1 else math.nan


def markdown_table(summaries: Sequence[Mapping[str, Any]]) -> str:
    """Return a Markdown table with one row per setting; errors are standard errors."""
    names = MEASURES | {key: name for key, name in BY_FEATURES.items() if any(key in entry for entry in summaries)}
    lines = ["| setting | calls | GFLOP | " + " | ".join(names.values()) + " |", "|---|--:|--:|" + "--:|" * len(names)]
    for entry in summaries:
        cells = [number_with_error(entry[key], 1 if key == "fid" else 4) if key in entry else "–" for key in names]
        lines.append(f"| {entry['name']} | {entry['calls']:.0f} | {entry['gigaflops']:.1f} | {' | '.join(cells)} |")
    return "\n".join(lines)


def number_with_error(value: Sequence[float], digits: int) -> str:
    """Return a number and its standard error as text."""
    return f"{value[0]:.{digits}f} ± {value[1]:.{digits}f}"


def plot(summaries: Sequence[Mapping[str, Any]], path: Path) -> None:
    """Plot noise, distance and, if measured, kernel distance over operations."""
    keys = [key for key in ("noise", "distance", "kid") if any(key in entry for entry in summaries)]
    figure = Figure(figsize=(4 * len(keys) + 4, 5.5), layout="constrained")
    for axes, key in zip(figure.subplots(1, len(keys)), keys, strict=True):
        for number, entry in enumerate(summaries, start=1):
            value, error = entry.get(key, (math.nan, math.nan))
            axes.errorbar(entry["gigaflops"], value, error, fmt="o", label=f"{number}: {entry['name']}")
            if not math.isnan(value):
                axes.annotate(f" {number}", (entry["gigaflops"], value), fontsize="small")
        axes.set(xlabel="GFLOP per image", ylabel=(MEASURES | BY_FEATURES)[key], yscale="log")
    figure.legend(*axes.get_legend_handles_labels(), loc="outside right center", fontsize="x-small")
    figure.savefig(path, dpi=110)


def parse_args() -> argparse.Namespace:
    """The command's flags."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output_dir", type=Path, required=True, help="folder for images, numbers, table and plot")
    parser.add_argument("--model_dir", type=Path, default=MODEL_DIR)
    parser.add_argument("--data_dir", type=Path, default=DATA_DIR)
    parser.add_argument("--num_captions", type=int, default=48)
    parser.add_argument("--num_seeds", type=int, default=3)
    parser.add_argument("--settings", nargs="+", choices=list(SETTINGS), default=list(SETTINGS), metavar="NAME")
    parser.add_argument("--batch_size", type=int, default=16)
    parser.add_argument("--reference", type=Path, help="features of real images, for KID and FID")
    return parser.parse_args()


def main() -> None:
    """Generate, measure, print and save."""
    args = parse_args()
    pipeline = MDMPipeline.from_pretrained(args.model_dir, dtype=torch.float32)
    pipeline.set_progress_bar_config(disable=True)
    truth = load_truth(args.data_dir, pipeline.image_sides[-1], args.num_captions)
    by_name: dict[str, list[dict[str, float]]] = {name: [] for name in args.settings}
    price = {name: costs(pipeline, SETTINGS[name], truth.captions[0]) for name in args.settings}
    # After an interruption, all settings have the same number of finished seeds.
    for seed in range(args.num_seeds):
        for name, found in by_name.items():
            levels = drawn_levels(
                pipeline, name, SETTINGS[name], seed, truth.captions, args.output_dir, args.batch_size
            )
            found.append(measure(levels, truth))
            shown = ", ".join(f"{key} {value:.4f}" for key, value in found[-1].items())
            print(f"seed {seed}, {name}: {shown}", flush=True)
        first = by_name[args.settings[0]]
        summaries = [{**summarised(name, found, first), **price[name]} for name, found in by_name.items()]
        write_results(summaries, args, seed + 1)
    if args.reference is not None:
        add_distances(summaries, truth, args)
    print(markdown_table(summaries))


def add_distances(summaries: Sequence[dict[str, Any]], truth: Truth, args: argparse.Namespace) -> None:
    """Add the distances from real images to the summaries, and write the results."""
    real, drawn = load_real(args.reference, truth), {}
    for name in args.settings:
        folders = [folder_of(args.output_dir, name, seed) for seed in range(args.num_seeds)]
        drawn[name] = [real.of_folder(folder) for folder in folders]
        print(f"features of {name}", flush=True)
    for entry in summaries:
        entry.update(by_features(drawn[entry["name"]], drawn[args.settings[0]], real))
    compared = of_real_images(truth, real, args.num_seeds * args.num_captions)
    print(f"real images: {compared}")
    write_results(summaries, args, args.num_seeds, {"real images": compared})


def write_results(
    summaries: Sequence[Mapping[str, Any]],
    args: argparse.Namespace,
    num_seeds: int,
    more: Mapping[str, Any] | None = None,
) -> None:
    """Write numbers, table and plot of the finished seeds."""
    result = {
        "machine": describe_machine("cpu"),
        "num_captions": args.num_captions,
        "num_seeds": num_seeds,
        **(more or {}),
        "settings": list(summaries),
    }
    write_numbers(args.output_dir / "results.json", result)
    (args.output_dir / "table.md").write_text(markdown_table(summaries) + "\n", encoding="utf-8")
    plot(summaries, args.output_dir / "sampling.png")


if __name__ == "__main__":
    main()
