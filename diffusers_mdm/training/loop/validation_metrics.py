# SPDX-License-Identifier: Apache-2.0
"""Validation metrics of a run: images generated for held-out captions, compared with the held-out images.

The same captions and noise are used every time, so that the numbers of different steps can be compared with one
another. They are not comparable with those of `diffusers-mdm evaluate`, which uses more images.
"""

from __future__ import annotations

import dataclasses
import itertools
import logging
import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from accelerate.utils import broadcast_object_list

from ...processes import wait_for_everyone
from ..data.sources import open_validation_images, validation_captions
from ..modules.classes import is_unconditional
from ..reports.validation_grid import draw_prompts, prompt_features, validation_pipeline, why_not_drawn
from ..state.run import Run

if TYPE_CHECKING:
    from ...evaluation.features import FeatureExtractor
    from ...evaluation.reference import Reference

logger = logging.getLogger(__name__)

# What the recipe calls a metric, and its name in the evaluation package.
MEASURES = {"fid": "fid", "kid": "kid", "clip": "clip_score", "retrieval": "retrieval"}
# The value that counts for a metric which has several.
_COUNTS = {**MEASURES, "retrieval": "retrieval_own_image"}
BATCH_SIZE = 16


@dataclasses.dataclass
class ValidationMetrics:
    """The metrics of a stage, and the held-out images with which generated images are compared, on the main process.

    Attributes:
        metrics: names of the metrics in the evaluation package.
        extractors: the feature extractors that they need.
        captions: N held-out captions, for which images are generated.
        images: their images `(N, 3, S, S)`, uint8, at the size of the stage's outermost level.
        reference: features of these images, computed when the metrics are first measured.
    """

    metrics: Sequence[str]
    extractors: list[FeatureExtractor]
    captions: list[str]
    images: torch.Tensor
    reference: Reference | None = None

    def measure(self, pyramid: Sequence[Sequence[Any]]) -> dict[str, float]:
        """Compare images generated for all captions with the held-out images.

        Args:
            pyramid: PIL images of every level, innermost first.

        Returns:
            Values by the names under which they are logged, e.g. "validation_fid/16px".
        """
        # The evaluation package is slow to import, and most runs do not need it.
        from ...evaluation.images import TensorImages
        from ...evaluation.reference import make_reference
        from ...evaluation.score import score

        levels = [TensorImages(_pixels(level), self.captions) for level in pyramid]
        sides = [level.pixels.shape[-1] for level in levels]
        if self.reference is None:
            self.reference = make_reference(
                TensorImages(self.images, self.captions), self.extractors, sides, BATCH_SIZE
            )
        found = score(levels, self.reference, self.extractors, self.metrics, batch_size=BATCH_SIZE)
        return {
            f"validation_{name}/{side}px": value
            for side, values in found.levels.items()
            for name, value in values.items()
            if not math.isnan(value)
        }


def open_validation_metrics(run: Run, side: int) -> ValidationMetrics | None:
    """Prepare the validation metrics of a stage; None if there are none, and on all processes but the main one.

    Args:
        run: the run, whose recipe names the metrics.
        side: side of the stage's outermost level, in pixels.

    Raises:
        ValueError: there are fewer held-out images than the recipe requires, or the network of a metric is missing.
    """
    settings = run.recipe.validation
    if not settings.metrics or not run.accelerator.is_main_process:
        return None
    from ...evaluation.features import InceptionFeatures, TransformersFeatures
    from ...evaluation.score import FEATURES_OF

    number = settings.num_metric_images
    images = open_validation_images(run.recipe.data, side)
    if images is None or len(images) < number:
        raise ValueError(
            f"`validation.num_metric_images` is {number}, but there are {0 if images is None else len(images)} "
            "held-out images; use more held-out data, or lower it."
        )
    metrics = [MEASURES[name] for name in settings.metrics]
    needed = dict.fromkeys(FEATURES_OF[metric] for metric in metrics if metric in FEATURES_OF)
    device = run.accelerator.device
    extractors: list[FeatureExtractor] = [
        InceptionFeatures(device) if name == "inception" else TransformersFeatures(name, settings.clip_model, device)
        for name in needed
    ]
    captions = list(itertools.islice(validation_captions(run.recipe.data), number))
    return ValidationMetrics(metrics, extractors, captions, images.load(list(range(number))).pixels)


def measure_validation_metrics(run: Run, metrics: ValidationMetrics | None) -> dict[str, float]:
    """Generate images for the held-out captions with the averaged weights, and compute the metrics.

    If weights are sharded, every process must call this; the main process generates, and the others wait.

    Returns:
        Values by the names under which they are logged. Empty on other processes, and, with a message in the log, if
        no images can be generated for captions.
    """
    values: dict[str, float] = {}
    if run.recipe.validation.metrics and (metrics is not None or run.is_sharded):
        values = _drawn_and_measured(run, metrics)
    wait_for_everyone(run.accelerator)
    return values


def _drawn_and_measured(run: Run, metrics: ValidationMetrics | None) -> dict[str, float]:
    captions = () if metrics is None else tuple(metrics.captions)
    settings = dataclasses.replace(run.recipe.validation, prompts=captions, num_validation_images=1)
    features = prompt_features(run)
    reason = why_not_drawn(run, features, settings)
    if reason is not None:
        if metrics is not None:
            logger.info("No validation metrics: %s", reason)
        return {}
    with validation_pipeline(run) as pipeline:
        if pipeline is None or metrics is None:
            return {}
        pyramid = draw_prompts(pipeline, settings, run.recipe.max_sequence_length, features)
        return metrics.measure(pyramid)


def outermost_value(run: Run, metric: str, values: Mapping[str, float]) -> float:
    """Return the value of a metric at the outermost level, on all processes; NaN if it was not a finite number.

    Args:
        run: the run; every process must call this.
        metric: what the recipe calls it.
        values: what `measure_validation_metrics` returned; empty on all processes but the main one.
    """
    name = f"validation_{_COUNTS[metric]}"
    sides = {int(key.rpartition("/")[2].removesuffix("px")): value for key, value in values.items() if name in key}
    value = [sides[max(sides)] if sides else math.nan]
    if run.accelerator.num_processes > 1:
        broadcast_object_list(value)
    return value[0]


def check_validation_metrics(run: Run) -> None:
    """Check, before training, that the model and the data of a run are suitable for its validation metrics.

    Raises:
        ValueError: says what is missing.
    """
    recipe = run.recipe
    if not recipe.validation.metrics:
        return
    if is_unconditional(recipe):
        of_captions = [name for name in recipe.validation.metrics if name not in ("fid", "kid")]
        if of_captions:
            raise ValueError(
                f"`validation.metrics` has {of_captions[0]!r}, which compares images with captions, and the model "
                "takes none; use fid or kid."
            )
    elif run.unet.config["cross_attention_dim"] is None:
        raise ValueError(
            "`validation.metrics` need a model with text or without any condition, because images are generated for "
            "held-out captions."
        )
    if max(run.unet.level_frames) > 1:
        raise ValueError("`validation.metrics` compare images, and this is a video model.")
    if not recipe.data.has_validation:
        raise ValueError(
            "`validation.metrics` compare generated images with held-out ones, and there are none: add a validation "
            "split to the data."
        )
    if any(stage.until_plateau is not None and stage.until_plateau.metric != "loss" for stage in recipe.stages):
        captions = tuple(itertools.islice(validation_captions(recipe.data), recipe.validation.num_metric_images))
        settings = dataclasses.replace(recipe.validation, prompts=captions)
        reason = why_not_drawn(run, prompt_features(run), settings)
        if reason is not None:
            raise ValueError(f"A metric of `until_plateau` cannot be measured: {reason}")


def _pixels(images: Sequence[Any]) -> torch.Tensor:
    """Convert PIL images to `(N, 3, S, S)`, uint8."""
    return torch.stack([torch.from_numpy(np.array(image.convert("RGB"))).permute(2, 0, 1) for image in images])
