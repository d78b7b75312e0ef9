# SPDX-License-Identifier: Apache-2.0
"""Scores of generated images: each level compared with real images, and with the level inside it."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import torch

from .distances import clip_discrepancy, frechet_distance, kernel_distance, precision_and_recall
from .features import CLIPTextFeatures, FeatureExtractor, TransformersFeatures, extract
from .images import Images, batches_of
from .levels import corner_noise, disagreement
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


@dataclass(frozen=True)
class Scores:
    """All scores of a set of generated images.

    Attributes:
        num_drawn: number of generated images.
        num_real: number of reference images.
        levels: maps the side of a level in pixels to its scores by name.
        disagreement: of each level but the innermost with the level inside it; see `levels.disagreement`.
        fingerprints: fingerprints of the extractors.
    """

    num_drawn: int
    num_real: int
    levels: dict[int, dict[str, float]]
    disagreement: list[float] = field(default_factory=list)
    fingerprints: dict[str, str] = field(default_factory=dict)

    def as_json(self) -> dict[str, Any]:
        """Return plain JSON values; what could not be measured is null."""
        values = asdict(self)
        values["levels"] = {
            str(side): {name: None if math.isnan(value) else value for name, value in level.items()}
            for side, level in self.levels.items()
        }
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

    Args:
        levels: the same images at every level, innermost first.
        reference: features of real images at the sides of these levels.
        extractors: the extractors that made the reference, as far as the metrics need them.
        metrics: names from `METRICS`.
        truth: the real images of the same captions in the same order; required by "noise".
        batch_size: images per batch.
        seed: seed of the subsets of KID.

    Raises:
        ValueError: a metric is unknown, an extractor is missing or differs from that of the reference, the reference
            has no features for a side, or there are too few images.
    """
    check_request(metrics, reference, extractors, truth)
    by_name = {extractor.name: extractor for extractor in extractors}
    pixels = [torch.cat(list(batches_of(level, batch_size))) for level in levels]
    values: dict[int, dict[str, float]] = {}
    for level, images in zip(levels, pixels, strict=True):
        side = images.shape[-1]
        found = values.setdefault(side, {})
        for name in {FEATURES_OF[metric]: None for metric in metrics if metric in FEATURES_OF}:
            real = features_of(reference, name, side)
            drawn = extract(by_name[name], images.split(batch_size))
            wanted = [metric for metric in metrics if FEATURES_OF.get(metric) == name]
            found.update(compare_features(wanted, drawn, real, level.captions, by_name[name], seed))
        found.update(compare_pixels(metrics, images, level.captions, reference, truth, batch_size))
    return Scores(
        num_drawn=len(levels[0]),
        num_real=len(reference.captions),
        levels=values,
        disagreement=disagreement(pixels),
        fingerprints={name: by_name[name].fingerprint for name in by_name},
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
        if name is not None and reference.fingerprints.get(name) != by_name[name].fingerprint:
            raise ValueError(
                f"The reference has the features {name!r} of {reference.fingerprints.get(name, 'no network')!r}, "
                f"the generated images would have those of {by_name[name].fingerprint!r}: they cannot be compared. "
                f"Make the "
                "reference again with the same weights."
            )
    if "noise" in metrics and truth is None:
        raise ValueError(
            "The metric 'noise' needs the real images, to know where they are white; pass them as `truth`."
        )


def features_of(reference: Reference, name: str, side: int) -> torch.Tensor:
    """Return the features of the real images at one side.

    Raises:
        ValueError: the reference has no features for this side.
    """
    try:
        return reference.features[name, side]
    except KeyError:
        sides = ", ".join(map(str, reference.sides))
        raise ValueError(
            f"The generated images have {side} pixels, but the reference has features for {sides}; make one for "
            f"{side}."
        ) from None


def compare_features(
    metrics: Sequence[str],
    drawn: torch.Tensor,
    real: torch.Tensor,
    captions: Sequence[str],
    extractor: FeatureExtractor,
    seed: int,
) -> dict[str, float]:
    """Compute the scores from one kind of features at one level, by name."""

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
        distance = (images.float() - real.float()).square().flatten(1).mean(1).sqrt().mean() / 255
        found.update({"noise": noise, "noise_corners": float(corners), "distance_to_truth": float(distance)})
    return found
