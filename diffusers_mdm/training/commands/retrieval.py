# SPDX-License-Identifier: Apache-2.0
"""Does a model draw what it is asked for? The nearest picture of the data set to each drawing tells.

Pictures are compared by the L2 distance of their pixels, averaged down to 16 pixels a side: a crude measure, but
free of any other model, and exact recall of a caption's own picture out of thousands is no accident.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import datasets
import torch
import torch.nn.functional as F
from diffusers.utils.logging import tqdm

from ...pipelines.pipeline_mdm import MDMPipeline
from ...pipelines.pipeline_mdm_class_conditional import MDMClassConditionalPipeline
from ..data.images import square_pixels
from ..pixel_range import to_unit_range
from .evaluation_command import GROUPS

COMPARED_SIDE = 16


@dataclass(frozen=True)
class RetrievalScores:
    """Shares of `num_drawn` drawings whose nearest picture is the captioned one, has its style, or has its label."""

    num_drawn: int
    picture: float
    style: float
    label: float


@dataclass(frozen=True)
class Gallery:
    """All pictures of the data set, (M, 3, 16, 16) in [-1, 1], with their rows' columns."""

    pixels: torch.Tensor
    captions: list[str]
    styles: list[int]
    labels: list[str]
    holdouts: list[str]

    def rows_of(self, holdout: str) -> list[int]:
        """Numbers of the rows whose `holdout` column is "none", "combination" or "concept"."""
        return [row for row, value in enumerate(self.holdouts) if value == holdout]


def load_gallery(path: str | Path) -> Gallery:
    """Read the emoji data set, or another with its columns `image`, `text`, `style`, `label` and `holdout`.

    Raises:
        ValueError: there is no such data set, or it lacks a column.
    """
    rows = _all_rows(path, ("image", "text", "style", "label", "holdout"))
    return Gallery(_pixels(rows), rows["text"][:], rows["style"][:], rows["label"][:], rows["holdout"][:])


def load_class_gallery(path: str | Path, column: str) -> tuple[torch.Tensor, list[int]]:
    """All pictures of a data set's train and validation split, or of the one that it has, and their classes.

    Returns:
        `(M, 3, 16, 16)` in [-1, 1], and M whole numbers from `column`.

    Raises:
        ValueError: there is no such data set, or it lacks a column; the message lists those that there are.
    """
    rows = _all_rows(path, ("image", column))
    return _pixels(rows), rows[column][:]


def _all_rows(path: str | Path, columns: Sequence[str]) -> datasets.Dataset:
    splits = datasets.load_dataset(str(path))
    found = [splits[name] for name in ("train", "validation") if name in splits] or list(splits.values())
    rows = datasets.concatenate_datasets(found)
    missing = [column for column in columns if column not in rows.column_names]
    if missing:
        raise ValueError(
            f"{path} has no column {missing[0]!r}; it has {', '.join(rows.column_names)}. Drawings are compared by "
            f"{', '.join(columns)}: name a data set with these columns as --data_dir, or leave that out for the one "
            "that the shipped models learnt."
        )
    return rows


def _pixels(rows: datasets.Dataset) -> torch.Tensor:
    return to_unit_range(torch.stack([square_pixels(image, COMPARED_SIDE) for image in rows["image"]]))


def pool_to_side(images: torch.Tensor, side: int = COMPARED_SIDE) -> torch.Tensor:
    """Average (B, 3, H, W) down to `side`; H and W are multiples of it."""
    if images.shape[-1] % side or images.shape[-2] % side:
        raise ValueError(f"Pictures of {tuple(images.shape[-2:])} pixels cannot be averaged down to {side}.")
    return F.avg_pool2d(images, (images.shape[-2] // side, images.shape[-1] // side))


def nearest_rows(pictures: torch.Tensor, gallery: torch.Tensor) -> torch.Tensor:
    """For each of (B, 3, s, s) the number (B,) of the gallery picture (M, 3, s, s) with the nearest pixels."""
    return torch.cdist(pictures.flatten(1), gallery.flatten(1)).argmin(1)


def choose_rows(rows: Sequence[int], number: int, seed: int) -> list[int]:
    """`number` of the given rows (all, if there are fewer), drawn without repetition from `seed`."""
    order = torch.randperm(len(rows), generator=torch.Generator().manual_seed(seed))
    return [rows[int(entry)] for entry in order[:number]]


def score_rows(gallery: Gallery, rows: Sequence[int], nearest: Sequence[int]) -> RetrievalScores:
    """Compare the wanted rows with the nearest ones found."""
    pairs = list(zip(rows, nearest, strict=True))

    def share(column: Sequence[Any]) -> float:
        return sum(column[wanted] == column[found] for wanted, found in pairs) / len(pairs)

    # Two captions can have the very same picture; each counts as the other's.
    same = [bool((gallery.pixels[wanted] == gallery.pixels[found]).all()) for wanted, found in pairs]
    return RetrievalScores(len(pairs), sum(same) / len(pairs), share(gallery.styles), share(gallery.labels))


def pooled_drawings(
    pipeline: Any, argument: str, wanted: Sequence[Any], seeds: Sequence[int], batch_size: int, **settings: Any
) -> Iterator[torch.Tensor]:
    """Draw pictures or clips batch by batch, and average them down to 16 pixels a side.

    Args:
        pipeline: draws.
        argument: of the pipeline that says what is drawn, such as "prompt".
        wanted: its values, one a drawing.
        seeds: of the noise of each, so that a drawing does not depend on the others.
        batch_size: drawings at a time.
        **settings: further arguments of the pipeline, such as `num_inference_steps`.

    Yields:
        `(B, 3, 16, 16)`, or of clips `(B, F, 3, 16, 16)`, in [-1, 1] on the CPU.
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
        pictures = drawn.float().cpu() * 2 - 1
        yield pool_to_side(pictures.flatten(0, -4)).unflatten(0, pictures.shape[:-3])


def draw_nearest(
    pipeline: MDMPipeline, gallery: Gallery, rows: Sequence[int], batch_size: int, seed: int, **settings: Any
) -> list[int]:
    """Draw the captions of `rows` and find the nearest gallery picture of each.

    Row r starts from noise seeded with `seed + r`, so a drawing does not depend on the others. `settings` are
    arguments of the pipeline, such as `num_inference_steps`, `guidance_scale` and `height`.
    """
    captions, seeds = [gallery.captions[row] for row in rows], [seed + row for row in rows]
    drawings = pooled_drawings(pipeline, "prompt", captions, seeds, batch_size, **settings)
    return [row for pooled in drawings for row in nearest_rows(pooled, gallery.pixels).tolist()]


def evaluate_retrieval(
    pipeline: MDMPipeline,
    gallery: Gallery,
    num_seen: int = 200,
    batch_size: int = 25,
    seed: int = 0,
    groups: Sequence[str] = GROUPS,
    **settings: Any,
) -> dict[str, RetrievalScores]:
    """Scores of `groups`: `num_seen` captions of the training split, held-out combinations, held-out concepts."""
    rows_of_group = {
        "seen": choose_rows(gallery.rows_of("none"), num_seen, seed),
        "combination": gallery.rows_of("combination"),
        "concept": gallery.rows_of("concept"),
    }
    scores = {}
    for name in groups:
        rows = rows_of_group[name]
        nearest = draw_nearest(pipeline, gallery, rows, batch_size, seed, **settings)
        scores[name] = score_rows(gallery, rows, nearest)
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
    """Of `num_per_class` drawings of every class, the share whose nearest picture is of this class.

    Drawing d starts from noise seeded with `seed + d`.

    Args:
        pipeline: draws the classes 0 to `pipeline.null_class` - 1.
        gallery: `(M, 3, 16, 16)` in [-1, 1].
        classes: of its pictures.
        num_per_class: drawings of each class.
        batch_size: drawings at a time.
        seed: of the noise.
        **settings: arguments of the pipeline, such as `guidance_scale`.
    """
    wanted = [label for label in range(pipeline.null_class) for _ in range(num_per_class)]
    seeds = range(seed, seed + len(wanted))
    drawings = pooled_drawings(pipeline, "class_labels", wanted, seeds, batch_size, **settings)
    nearest = [row for pooled in drawings for row in nearest_rows(pooled, gallery).tolist()]
    hits = dict.fromkeys(wanted, 0)
    for label, row in zip(wanted, nearest, strict=True):
        hits[label] += classes[row] == label
    return {label: count / num_per_class for label, count in hits.items()}
