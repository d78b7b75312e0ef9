# SPDX-License-Identifier: Apache-2.0
"""Scores of generated images: each level compared with real images, and with the level inside it."""

from __future__ import annotations

import math
import shlex
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import torch

from .distances import clip_discrepancy, frechet_distance, kernel_distance, precision_and_recall
from .features import CLIPTextFeatures, FeatureExtractor, TransformersFeatures, extract
from .images import Images, batches_of
from .levels import corner_noise, disagreement, pixel_distance
from .reference import Reference
from .retrieval import retrieve

# The extractor whose features each metric compares.
FEATURES_OF = {
    "fid": "inception",
    "kid": "inception",
    "precision_recall": "inception",
    "fd_dinov2": "dinov2",
    "cmmd": "clip",
    "clip_score": "clip",
}
METRICS = (*FEATURES_OF, "retrieval", "noise")
# Metrics of features that compare generated images with their captions, not with real images.
WITHOUT_REFERENCE = {"clip_score"}


@dataclass(frozen=True)
class Scores:
    """All scores of a set of generated images.

    Attributes:
        num_drawn: number of generated images.
        num_real: number of reference images.
        levels: maps the side of a level in pixels to its scores by name.
        disagreement: of each level but the innermost with the level inside it; see `levels.disagreement`.
        fingerprints: fingerprints of the extractors.
        left_out: the metrics that need features of real images, for each side for which the reference has none.
    """

    num_drawn: int
    num_real: int
    levels: dict[int, dict[str, float]]
    disagreement: list[float] = field(default_factory=list)
    fingerprints: dict[str, str] = field(default_factory=dict)
    left_out: dict[int, list[str]] = field(default_factory=dict)

    def as_json(self) -> dict[str, Any]:
        """Return plain JSON values; what could not be measured is null."""
        values = asdict(self)
        values["levels"] = {
            str(side): {name: None if math.isnan(value) else value for name, value in level.items()}
            for side, level in self.levels.items()
        }
        values["left_out"] = {str(side): names for side, names in self.left_out.items()}
        return values


def score(
    levels: Sequence[Images],
    reference: Reference,
    extractors: Sequence[FeatureExtractor],
    metrics: Sequence[str] = ("fid", "kid", "precision_recall", "retrieval"),
    truth: Images | None = None,
    batch_size: int = 32,
    seed: int = 0,
) -> Scores:
    """Compute the scores of generated images.

    At sides for which the reference has no features, the metrics that need them are left out.

    Args:
        levels: the same images at every level, innermost first.
        reference: features of real images at the sides of one or more of these levels.
        extractors: the extractors that made the reference, as far as the metrics need them.
        metrics: names from `METRICS`.
        truth: the real images of the same captions in the same order; required by "noise".
        batch_size: images per batch.
        seed: seed of the subsets of KID.

    Raises:
        ValueError: a metric is unknown, an extractor is missing or differs from that of the reference, the reference
            has no features for any of the sides, or there are too few images.
    """
    check_request(metrics, reference, extractors, truth)
    left_out = without_features(reference, metrics, [level.load([0]).shape[-1] for level in levels])
    by_name = {extractor.name: extractor for extractor in extractors}
    pixels = [torch.cat(list(batches_of(level, batch_size))) for level in levels]
    values: dict[int, dict[str, float]] = {}
    for level, images in zip(levels, pixels, strict=True):
        side = images.shape[-1]
        found = values.setdefault(side, {})
        compared = [metric for metric in metrics if metric in FEATURES_OF and metric not in left_out.get(side, ())]
        for name in dict.fromkeys(FEATURES_OF[metric] for metric in compared):
            drawn, real = extract(by_name[name], images.split(batch_size)), reference.features.get((name, side))
            wanted = [metric for metric in compared if FEATURES_OF[metric] == name]
            found.update(compare_features(wanted, drawn, real, level.captions, by_name[name], seed))
        found.update(compare_pixels(metrics, images, level.captions, reference, truth, batch_size))
    return Scores(
        num_drawn=len(levels[0]),
        num_real=len(reference.captions),
        levels=values,
        disagreement=disagreement(pixels),
        fingerprints={name: by_name[name].fingerprint for name in by_name},
        left_out=left_out,
    )


def check_request(
    metrics: Sequence[str], reference: Reference, extractors: Sequence[FeatureExtractor], truth: Images | None
) -> None:
    """Check that everything the metrics need is there, before anything is computed.

    Raises:
        ValueError: names what is missing.
    """
    unknown = [name for name in metrics if name not in METRICS]
    if unknown:
        raise ValueError(f"Unknown metrics {', '.join(unknown)}; choose from {', '.join(METRICS)}.")
    by_name = {extractor.name: extractor for extractor in extractors}
    for metric in metrics:
        name = FEATURES_OF.get(metric)
        if name is not None and name not in by_name:
            raise ValueError(
                f"The metric {metric!r} needs an extractor for the features {name!r}, which was not given."
            )
        if name is None or metric in WITHOUT_REFERENCE:
            continue
        if reference.fingerprints.get(name) != by_name[name].fingerprint:
            raise ValueError(
                f"The reference has the features {name!r} of {reference.fingerprints.get(name, 'no network')!r}, "
                f"the generated images would have those of {by_name[name].fingerprint!r}: they cannot be compared. "
                "Make the reference again with the same weights."
            )
    if "noise" in metrics and truth is None:
        raise ValueError(
            "The metric 'noise' needs the real images, to know where they are white; pass them as `truth`."
        )


def without_features(reference: Reference, metrics: Sequence[str], sides: Sequence[int]) -> dict[int, list[str]]:
    """Return the metrics that cannot be computed because the reference has no features for a side, by side.

    Args:
        reference: the reference.
        metrics: the requested metrics.
        sides: sides of the generated images, in pixels.

    Raises:
        ValueError: they cannot be computed for any side; the message has the command that makes the features.
    """
    needed = [metric for metric in metrics if metric in FEATURES_OF and metric not in WITHOUT_REFERENCE]
    missing = {
        side: [metric for metric in needed if (FEATURES_OF[metric], side) not in reference.features] for side in sides
    }
    if needed and all(missing[side] == needed for side in sides):
        raise ValueError(
            f"The generated images have {join_sides(sides)} pixels, but the reference has features for "
            f"{join_sides(reference.sides) or 'none'}. {how_to_add(reference, sides)}"
        )
    return {side: names for side, names in missing.items() if names}


def join_sides(sides: Sequence[int]) -> str:
    """Return sides as text, such as "16, 64"."""
    return ", ".join(map(str, sides))


def how_to_add(reference: Reference, sides: Sequence[int]) -> str:
    """Return a sentence with the command that makes the reference with features for these sides, too."""
    recipe = reference.recipe
    words = ["--data_dir", recipe.get("data", "DATA"), "--split", recipe.get("split", "train")]
    words += ["--sides", *sorted({*reference.sides, *sides}), "--features", *reference.fingerprints]
    if recipe.get("seed") is not None:
        words += ["--num_images", len(reference.captions), "--seed", recipe["seed"]]
    return (
        f"To compare at all sides, make the reference again: `evaluate reference {shlex.join(map(str, words))} "
        "--output_dir FOLDER`."
    )


def compare_features(
    metrics: Sequence[str],
    drawn: torch.Tensor,
    real: torch.Tensor | None,
    captions: Sequence[str],
    extractor: FeatureExtractor,
    seed: int,
) -> dict[str, float]:
    """Compute the scores from one kind of features at one level, by name; `real` is None if no metric needs it."""
    real = drawn[:0] if real is None else real

    def kid() -> dict[str, float]:
        distance = kernel_distance(drawn, real, seed)
        return {"kid": distance.mean, "kid_error": distance.error}

    def precision_recall() -> dict[str, float]:
        precision, recall = precision_and_recall(drawn, real)
        return {"precision": precision, "recall": recall}

    def clip_score() -> dict[str, float]:
        if not isinstance(extractor, TransformersFeatures):
            raise ValueError("The CLIP score needs CLIP as `TransformersFeatures`, which includes its text encoder.")
        texts = CLIPTextFeatures(extractor)(captions)
        cosines = torch.nn.functional.cosine_similarity(drawn.cpu().double(), texts.cpu().double())
        return {"clip_score": float(100 * cosines.clamp(min=0).mean())}

    measures: Mapping[str, Callable[[], dict[str, float]]] = {
        "fid": lambda: {"fid": frechet_distance(drawn, real)},
        "kid": kid,
        "precision_recall": precision_recall,
        "fd_dinov2": lambda: {"fd_dinov2": frechet_distance(drawn, real)},
        "cmmd": lambda: {"cmmd": clip_discrepancy(drawn, real)},
        "clip_score": clip_score,
    }
    found: dict[str, float] = {}
    for metric in metrics:
        found.update(measures[metric]())
    return found


def compare_pixels(
    metrics: Sequence[str],
    images: torch.Tensor,
    captions: Sequence[str],
    reference: Reference,
    truth: Images | None,
    batch_size: int,
) -> dict[str, float]:
    """Compute the scores from pixels, by name."""
    found: dict[str, float] = {}
    if "retrieval" in metrics:
        nearest = retrieve(images, captions, reference.thumbnails, reference.captions)
        found.update({f"retrieval_{name}": value for name, value in asdict(nearest).items()})
    if "noise" in metrics and truth is not None:
        real = torch.cat(list(batches_of(truth, batch_size, images.shape[-1])))
        noise, corners = corner_noise(images, real)
        distance = pixel_distance(images, real)
        found.update({"noise": noise, "noise_corners": float(corners), "distance_to_truth": distance})
    return found
