# SPDX-License-Identifier: Apache-2.0
"""Recall: does a model generate what was requested?

Each generated image or clip is compared with all images or clips of a data set, and counts as right if the nearest one
is the one that was requested: that of the caption, or one of the class. For the distance, see `retrieval`.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from diffusers.utils.logging import tqdm

from ..pipelines.pipeline_mdm import MDMPipeline
from ..pipelines.pipeline_mdm_class_conditional import MDMClassConditionalPipeline
from ..pipelines.pipeline_mdm_video import MDMVideoPipeline
from .images import pool
from .retrieval import COMPARED_SIDE, nearest

# Groups of captions, by the `holdout` column of their records: seen in training, and two kinds of held-out ones.
GROUPS = {"seen": "none", "combination": "combination", "concept": "concept"}


@dataclass(frozen=True)
class RetrievalScores:
    """Scores of images generated for captions by the nearest image of the data set.

    Attributes:
        num_drawn: number of generated images.
        image: fraction whose nearest image is the captioned one (or has exactly the same pixels).
        style: fraction whose nearest image has the same style.
        label: fraction whose nearest image has the same label.
    """

    num_drawn: int
    image: float
    style: float
    label: float


@dataclass(frozen=True)
class Gallery:
    """The M images of a data set, and the columns of their records.

    Attributes:
        pixels: `(M, 3, 16, 16)` in [-1, 1].
        captions: M captions.
        styles: the style of each image.
        labels: what each image shows.
        holdouts: "none" for records of the training split, otherwise why the record is held out.
    """

    pixels: torch.Tensor
    captions: list[str]
    styles: list[int]
    labels: list[str]
    holdouts: list[str]

    def records_of(self, holdout: str) -> list[int]:
        """Return the numbers of the records with this value in their `holdout` column."""
        return [record for record, value in enumerate(self.holdouts) if value == holdout]


@dataclass(frozen=True)
class ClipScores:
    """Scores of clips generated for captions.

    Attributes:
        num_drawn: number of generated clips.
        clip: fraction whose nearest clip is the captioned one (or has exactly the same pixels).
        motion: mean difference of successive frames, divided by that of the captioned clips: 1 if they move as much,
            0 if they do not move.
    """

    num_drawn: int
    clip: float
    motion: float


def choose_records(records: Sequence[int], number: int, seed: int) -> list[int]:
    """Choose `number` of the given records at random, without repetition; all of them if there are fewer."""
    order = torch.randperm(len(records), generator=torch.Generator().manual_seed(seed))
    return [records[int(entry)] for entry in order[:number]]


def pooled_drawings(
    pipeline: Any, argument: str, wanted: Sequence[Any], seeds: Sequence[int], batch_size: int, **settings: Any
) -> Iterator[torch.Tensor]:
    """Generate images or clips batch by batch, and average them down to 16 x 16 pixels.

    Args:
        pipeline: the pipeline.
        argument: name of the argument that says what is generated, such as "prompt".
        wanted: its values, one per image or clip.
        seeds: seed of the noise of each image or clip, which then does not depend on the others.
        batch_size: images or clips per call.
        **settings: further arguments of the pipeline, such as `num_inference_steps`.

    Yields:
        `(B, 3, 16, 16)`, or `(B, F, 3, 16, 16)` for clips, in [-1, 1] on the CPU.
    """
    for start in tqdm(range(0, len(wanted), batch_size), desc="drawing"):
        part = slice(start, start + batch_size)
        drawn = pipeline(
            **{argument: list(wanted[part])},
            generator=[torch.Generator().manual_seed(seed) for seed in seeds[part]],
            output_type="pt",
            return_dict=False,
            **settings,
        )[0]
        images = drawn.float().cpu() * 2 - 1
        yield pool(images.flatten(0, -4), COMPARED_SIDE).unflatten(0, images.shape[:-3])


def score_records(gallery: Gallery, records: Sequence[int], found: Sequence[int]) -> RetrievalScores:
    """Compare the requested records with those that were found.

    Args:
        gallery: the data set.
        records: numbers of the requested records.
        found: number of the nearest record of each generated image.
    """
    pairs = list(zip(records, found, strict=True))

    def share(column: Sequence[Any]) -> float:
        return sum(column[wanted] == column[other] for wanted, other in pairs) / len(pairs)

    # Two captions can have identical images; each then counts as right for the other.
    same = [bool((gallery.pixels[wanted] == gallery.pixels[other]).all()) for wanted, other in pairs]
    return RetrievalScores(len(pairs), sum(same) / len(pairs), share(gallery.styles), share(gallery.labels))


def evaluate_retrieval(
    pipeline: MDMPipeline,
    gallery: Gallery,
    num_seen: int = 200,
    batch_size: int = 25,
    seed: int = 0,
    groups: Sequence[str] = tuple(GROUPS),
    **settings: Any,
) -> dict[str, RetrievalScores]:
    """Score images generated for captions of the training split, and for held-out captions.

    The image for record r starts from noise with seed `seed + r`, so it does not depend on the others.

    Args:
        pipeline: the pipeline.
        gallery: the data set.
        num_seen: number of captions of the training split.
        batch_size: images per call.
        seed: seed of the noise, and of the choice of captions.
        groups: groups of captions, out of `GROUPS`.
        **settings: further arguments of the pipeline, such as `num_inference_steps`, `guidance_scale` and `height`.

    Returns:
        The scores of each group.
    """
    scores = {}
    for group in groups:
        records = gallery.records_of(GROUPS[group])
        if group == "seen":
            records = choose_records(records, num_seen, seed)
        captions, seeds = [gallery.captions[record] for record in records], [seed + record for record in records]
        drawings = pooled_drawings(pipeline, "prompt", captions, seeds, batch_size, **settings)
        found = [record for pooled in drawings for record in nearest(pooled, gallery.pixels)[1].tolist()]
        scores[group] = score_records(gallery, records, found)
    return scores


def evaluate_classes(
    pipeline: MDMClassConditionalPipeline,
    gallery: torch.Tensor,
    classes: Sequence[int],
    num_per_class: int = 4,
    batch_size: int = 32,
    seed: int = 0,
    **settings: Any,
) -> dict[int, float]:
    """Return for each class the fraction of its generated images whose nearest image has the same class.

    Image n starts from noise with seed `seed + n`.

    Args:
        pipeline: the pipeline, whose classes 0 to `pipeline.null_class` - 1 are generated.
        gallery: the images of the data set, `(M, 3, 16, 16)` in [-1, 1].
        classes: their M classes.
        num_per_class: number of images per class.
        batch_size: images per call.
        seed: seed of the noise.
        **settings: further arguments of the pipeline, such as `guidance_scale`.
    """
    wanted = [label for label in range(pipeline.null_class) for _ in range(num_per_class)]
    seeds = range(seed, seed + len(wanted))
    drawings = pooled_drawings(pipeline, "class_labels", wanted, seeds, batch_size, **settings)
    found = [record for pooled in drawings for record in nearest(pooled, gallery)[1].tolist()]
    hits = dict.fromkeys(wanted, 0)
    for label, record in zip(wanted, found, strict=True):
        hits[label] += classes[record] == label
    return {label: count / num_per_class for label, count in hits.items()}


def evaluate_clips(
    pipeline: MDMVideoPipeline,
    gallery: torch.Tensor,
    captions: Sequence[str],
    records: Sequence[int],
    batch_size: int = 8,
    seed: int = 0,
    **settings: Any,
) -> ClipScores:
    """Score clips generated for some captions of a data set.

    The clip for record r starts from noise with seed `seed + r`, so it does not depend on the others.

    Args:
        pipeline: the pipeline, which generates as many frames as the clips of the gallery have.
        gallery: the clips of the data set, `(M, F, 3, 16, 16)` in [-1, 1].
        captions: their M captions.
        records: numbers of the captions for which clips are generated.
        batch_size: clips per call.
        seed: seed of the noise.
        **settings: further arguments of the pipeline, such as `guidance_scale`.
    """
    wanted, seeds = [captions[record] for record in records], [seed + record for record in records]
    drawn = torch.cat(list(pooled_drawings(pipeline, "prompt", wanted, seeds, batch_size, **settings)))
    found, true = gallery[nearest(drawn, gallery)[1]], gallery[list(records)]
    # Two captions can have identical clips; each then counts as right for the other.
    hits = (found == true).flatten(1).all(1)
    return ClipScores(len(records), float(hits.cpu().double().mean()), float(motion(drawn).sum() / motion(true).sum()))


def motion(clips: torch.Tensor) -> torch.Tensor:
    """Return the mean absolute difference of successive frames, `(B,)`, of clips `(B, F, 3, H, W)`."""
    return clips.diff(dim=1).abs().flatten(1).mean(1)
