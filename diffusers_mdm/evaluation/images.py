# SPDX-License-Identifier: Apache-2.0
"""Sets of captioned images to compare: a protocol, and sets that are tensors or folders of files."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image

METADATA_FILE = "metadata.jsonl"


class Images(Protocol):
    """A set of captioned images of one size."""

    @property
    def captions(self) -> Sequence[str]:
        """One per image."""

    def __len__(self) -> int: ...

    def load(self, numbers: Sequence[int]) -> torch.Tensor:
        """Return the images with these numbers, `(B, 3, H, W)`, uint8."""


@dataclass(frozen=True)
class TensorImages:
    """Images in memory, `(N, 3, H, W)`, uint8."""

    pixels: torch.Tensor
    captions: Sequence[str]

    def __len__(self) -> int:
        return len(self.pixels)

    def load(self, numbers: Sequence[int]) -> torch.Tensor:
        """Return the images with these numbers, `(B, 3, H, W)`, uint8."""
        return self.pixels[list(numbers)]


class FolderImages:
    """The images of a folder written by `generate`, in the order of its `metadata.jsonl`.

    Args:
        folder: contains that file and the images that its lines name (`file_name`, `text`).

    Raises:
        ValueError: the file is missing or damaged; the message names the line.
    """

    def __init__(self, folder: str | Path):
        self.folder = Path(folder)
        records = list(read_records(self.folder / METADATA_FILE))
        self.files = [self.folder / str(record["file_name"]) for record in records]
        self.captions: Sequence[str] = [str(record["text"]) for record in records]

    def __len__(self) -> int:
        return len(self.files)

    def load(self, numbers: Sequence[int]) -> torch.Tensor:
        """Return the images with these numbers, `(B, 3, H, W)`, uint8."""
        return torch.stack([read_image(self.files[number]) for number in numbers])


def read_records(path: Path) -> Iterator[dict[str, Any]]:
    """Read the records of a `metadata.jsonl`.

    Raises:
        ValueError: there is no such file, or a line is not an object with `file_name` (without a path) and `text`.
    """
    if not path.is_file():
        raise ValueError(f"{path.parent} has no {METADATA_FILE}; pass a folder that `generate` has written.")
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1):
        try:
            record = json.loads(line)
            name = record["file_name"]
            whole = isinstance(record["text"], str) and Path(name).name == name
        except (ValueError, KeyError, TypeError):
            whole = False
        if not whole:
            raise ValueError(
                f"{path}, line {number}: expected a JSON object with `file_name`, the name of a file in this folder, "
                f"and `text`; found {line[:80]!r}."
            )
        yield record


def read_image(path: Path) -> torch.Tensor:
    """Read an image file that this package wrote, as `(3, H, W)`, uint8.

    Raises:
        ValueError: it cannot be read.
    """
    try:
        with Image.open(path) as image:
            pixels = np.asarray(image.convert("RGB"))
    except OSError as error:
        raise ValueError(f"{path} cannot be read as an image: {error}") from error
    return torch.from_numpy(pixels.copy()).permute(2, 0, 1)


def batches_of(images: Images, batch_size: int, side: int | None = None) -> Iterator[torch.Tensor]:
    """Yield all images, `(B, 3, H, W)` uint8, `batch_size` at a time, averaged down to `side` if that is given."""
    for start in range(0, len(images), batch_size):
        batch = images.load(range(start, min(start + batch_size, len(images))))
        yield batch if side is None else average_down(batch, side)


def average_down(images: torch.Tensor, side: int) -> torch.Tensor:
    """Average `(B, 3, H, W)`, uint8, down to squares of `side` pixels, rounded to integers.

    Raises:
        ValueError: H or W is not a multiple of `side`.
    """
    return (pool(images.float(), side)).round().clamp(0, 255).to(torch.uint8)


def pool(images: torch.Tensor, side: int) -> torch.Tensor:
    """Average `(B, C, H, W)`, float, down to `(B, C, side, side)`.

    Raises:
        ValueError: H or W is not a multiple of `side`.
    """
    height, width = images.shape[-2:]
    if height % side or width % side:
        raise ValueError(
            f"Images of {height} x {width} pixels cannot be averaged down to {side}: height and width "
            f"must be multiples of it."
        )
    return F.avg_pool2d(images, (height // side, width // side))
