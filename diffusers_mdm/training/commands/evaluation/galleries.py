# SPDX-License-Identifier: Apache-2.0
"""Reading the images and clips of data sets with which the emoji commands compare generated ones.

They are averaged down to 16 x 16 pixels, in [-1, 1], as `evaluation.recall` compares them.
"""

from collections.abc import Sequence
from pathlib import Path

import datasets
import torch

from ....evaluation.recall import Gallery
from ....evaluation.retrieval import COMPARED_SIDE
from ...data.batch import to_unit_range
from ...data.images import open_image, square_pixels
from ...data.sources import open_validation_images
from ...data.tables.splits import encoded_file, load_all_splits, own_files
from ...recipe.data import TableData


def load_gallery(path: str | Path) -> Gallery:
    """Read the emoji data set, or another one with the columns `image`, `text`, `style`, `label` and `holdout`.

    Raises:
        ValueError: there is no such data set, or it lacks a column.
    """
    records = _all_records(path, ("image", "text", "style", "label", "holdout"))
    return Gallery(
        _pixels(path, records), records["text"][:], records["style"][:], records["label"][:], records["holdout"][:]
    )


def load_class_gallery(path: str | Path, column: str) -> tuple[torch.Tensor, list[int]]:
    """Read the images of a data set's training and validation splits, or of its only split, and their classes.

    Args:
        path: the data set.
        column: the column with the classes.

    Returns:
        Images `(M, 3, 16, 16)` in [-1, 1], and M integers.

    Raises:
        ValueError: there is no such data set, or it lacks a column; the message lists those that it has.
    """
    records = _all_records(path, ("image", column))
    return _pixels(path, records), records[column][:]


def load_clip_gallery(
    path: str | Path, num_frames: int, split: str = "train", video_column: str = "video"
) -> tuple[torch.Tensor, list[str]]:
    """Read the clips of a split and their captions.

    Args:
        path: the data set.
        num_frames: F, the number of frames of each clip.
        split: name of the split.
        video_column: name of the column with the clips.

    Returns:
        Clips `(M, F, 3, 16, 16)` in [-1, 1], and M captions.

    Raises:
        ValueError: there is no such split or column, or a clip has fewer frames.
    """
    data = TableData(path=str(path), validation_split=split, video_column=video_column, max_skipped_images=0)
    clips = open_validation_images(data, COMPARED_SIDE, num_frames=num_frames)
    assert clips is not None  # the recipe names the split
    batch = clips.load(range(len(clips)))
    return to_unit_range(batch.pixels).transpose(1, 2), batch.captions


def _all_records(path: str | Path, columns: Sequence[str]) -> datasets.Dataset:
    splits = load_all_splits(TableData(path=str(path), caption=""))
    found = [splits[name] for name in ("train", "validation") if name in splits] or list(splits.values())
    records = datasets.concatenate_datasets(found)
    missing = [column for column in columns if column not in records.column_names]
    if missing:
        raise ValueError(
            f"{path} has no column {missing[0]!r}; it has {', '.join(records.column_names)}. Generated images are "
            f"compared by {', '.join(columns)}: pass a data set with these columns as --data_dir, or omit the flag to "
            "use that of the shipped models."
        )
    return records


def _pixels(path: str | Path, records: datasets.Dataset) -> torch.Tensor:
    allowed = own_files(TableData(path=str(path)))
    cells = records.cast_column("image", datasets.Image(decode=False))["image"]
    images = (open_image(encoded_file(cell, allowed)) for cell in cells)
    return to_unit_range(torch.stack([square_pixels(image, COMPARED_SIDE) for image in images]))
