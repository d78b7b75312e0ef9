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
from ..data.batch import to_unit_range
from ..data.images import open_image, square_pixels
from ..data.tables.splits import encoded_file, load_all_splits, own_files
from ..recipe.data import TableData
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
    """All pictures of the data set, (M, 3, 16, 16) in [-1, 1], with their records' columns."""

    pixels: torch.Tensor
    captions: list[str]
    styles: list[int]
    labels: list[str]
    holdouts: list[str]

    def records_of(self, holdout: str) -> list[int]:
        """Numbers of the records whose `holdout` column is "none", "combination" or "concept"."""
        return [record for record, value in enumerate(self.holdouts) if value == holdout]


def load_gallery(path: str | Path) -> Gallery:
    """Read the emoji data set, or another with its columns `image`, `text`, `style`, `label` and `holdout`.

    Raises:
        ValueError: there is no such data set, or it lacks a column.
    """
    records = _all_records(path, ("image", "text", "style", "label", "holdout"))
    return Gallery(
        _pixels(path, records), records["text"][:], records["style"][:], records["label"][:], records["holdout"][:]
    )


def load_class_gallery(path: str | Path, column: str) -> tuple[torch.Tensor, list[int]]:
    """All pictures of a data set's train and validation split, or of the one that it has, and their classes.

    Returns:
        `(M, 3, 16, 16)` in [-1, 1], and M whole numbers from `column`.

    Raises:
        ValueError: there is no such data set, or it lacks a column; the message lists those that there are.
    """
    records = _all_records(path, ("image", column))
    return _pixels(path, records), records[column][:]


def _all_records(path: str | Path, columns: Sequence[str]) -> datasets.Dataset:
    splits = load_all_splits(TableData(path=str(path), caption=""))
    found = [splits[name] for name in ("train", "validation") if name in splits] or list(splits.values())
    records = datasets.concatenate_datasets(found)
    missing = [column for column in columns if column not in records.column_names]
    if missing:
        raise ValueError(
            f"{path} has no column {missing[0]!r}; it has {', '.join(records.column_names)}. Drawings are compared by "
            f"{', '.join(columns)}: name a data set with these columns as --data_dir, or leave that out for the one "
            "that the shipped models learnt."
        )
    return records


def _pixels(path: str | Path, records: datasets.Dataset) -> torch.Tensor:
    allowed = own_files(TableData(path=str(path)))
    cells = records.cast_column("image", datasets.Image(decode=False))["image"]
    pictures = (open_image(encoded_file(cell, allowed)) for cell in cells)
    return to_unit_range(torch.stack([square_pixels(picture, COMPARED_SIDE) for picture in pictures]))


def pool_to_side(images: torch.Tensor, side: int = COMPARED_SIDE) -> torch.Tensor:
    """Average (B, 3, H, W) down to `side`; H and W are multiples of it."""
    if images.shape[-1] % side or images.shape[-2] % side:
        raise ValueError(f"Pictures of {tuple(images.shape[-2:])} pixels cannot be averaged down to {side}.")
    return F.avg_pool2d(images, (images.shape[-2] // side, images.shape[-1] // side))


def nearest_records(pictures: torch.Tensor, gallery: torch.Tensor) -> torch.Tensor:
    """For each of (B, 3, s, s) the number (B,) of the gallery picture (M, 3, s, s) with the nearest pixels."""
    return torch.cdist(pictures.flatten(1), gallery.flatten(1)).argmin(1)


def choose_records(records: Sequence[int], number: int, seed: int) -> list[int]:
    """`number` of the given records (all, if there are fewer), drawn without repetition from `seed`."""
    order = torch.randperm(len(records), generator=torch.Generator().manual_seed(seed))
    return [records[int(entry)] for entry in order[:number]]


def score_records(gallery: Gallery, records: Sequence[int], nearest: Sequence[int]) -> RetrievalScores:
    """Compare the wanted records with the nearest ones found."""
    pairs = list(zip(records, nearest, strict=True))

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
    pipeline: MDMPipeline, gallery: Gallery, records: Sequence[int], batch_size: int, seed: int, **settings: Any
) -> list[int]:
    """Draw the captions of `records` and find the nearest gallery picture of each.

    Record r starts from noise seeded with `seed + r`, so a drawing does not depend on the others. `settings` are
    arguments of the pipeline, such as `num_inference_steps`, `guidance_scale` and `height`.
    """
    captions, seeds = [gallery.captions[record] for record in records], [seed + record for record in records]
    drawings = pooled_drawings(pipeline, "prompt", captions, seeds, batch_size, **settings)
    return [record for pooled in drawings for record in nearest_records(pooled, gallery.pixels).tolist()]


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
    records_of_group = {
        "seen": choose_records(gallery.records_of("none"), num_seen, seed),
        "combination": gallery.records_of("combination"),
        "concept": gallery.records_of("concept"),
    }
    scores = {}
    for name in groups:
        records = records_of_group[name]
        nearest = draw_nearest(pipeline, gallery, records, batch_size, seed, **settings)
        scores[name] = score_records(gallery, records, nearest)
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
    nearest = [record for pooled in drawings for record in nearest_records(pooled, gallery).tolist()]
    hits = dict.fromkeys(wanted, 0)
    for label, record in zip(wanted, nearest, strict=True):
        hits[label] += classes[record] == label
    return {label: count / num_per_class for label, count in hits.items()}
