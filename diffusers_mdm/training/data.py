# SPDX-License-Identifier: Apache-2.0
"""Captioned pictures for training: reading, resizing, and an order that depends on nothing but seed and position."""

from collections.abc import Iterator, Sequence
from typing import Any

import datasets
import numpy as np
import torch
from PIL import Image
from torch.utils.data import DataLoader, Dataset, Sampler

from .recipe import DataRecipe

CACHE_LIMIT_BYTES = 512 * 2**20  # decoded pictures of one stage are kept in memory below this size


def load_captioned_split(recipe: DataRecipe, split: str) -> datasets.Dataset:
    """Open one split of a folder (parquet, imagefolder) or Hub dataset and check the columns that training reads.

    Raises:
        ValueError: if the split or a column does not exist; the message lists those that do.
    """
    splits = datasets.load_dataset(recipe.path)
    if split not in splits:
        raise ValueError(f"{recipe.path} has no split {split!r}; it has {', '.join(splits)}.")
    rows = splits[split]
    for column in (recipe.image_column, recipe.caption_column):
        if column not in rows.column_names:
            raise ValueError(f"{recipe.path} has no column {column!r}; it has {', '.join(rows.column_names)}.")
    if not len(rows):
        raise ValueError(f"Split {split!r} of {recipe.path} has no rows.")
    return rows


def square_pixels(image: Image.Image, side: int) -> torch.Tensor:
    """Crop the centre square of a picture and resize it by area averaging: uint8 (3, side, side), transparency white.

    Area averaging is what `build_pyramid` does between levels, so a stage of small pictures sees the same pixels as
    the inner levels of a later stage, up to rounding to 8 bits.
    """
    if image.mode in ("RGBA", "LA", "P"):
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    image = image.convert("RGB")
    short = min(image.size)
    left, top = (image.width - short) // 2, (image.height - short) // 2
    box = (left, top, left + short, top + short)
    if (short, short) != (side, side):
        method = Image.Resampling.BOX if short >= side else Image.Resampling.BICUBIC
        image = image.resize((side, side), method, box=box)
    else:
        image = image.crop(box)
    return torch.from_numpy(np.array(image)).permute(2, 0, 1).contiguous()


def to_unit_range(pixels: torch.Tensor) -> torch.Tensor:
    """uint8 pixels 0..255 -> float32 in [-1, 1], the range the pipeline's pictures have."""
    return pixels.float() / 127.5 - 1.0


class CaptionedImages(Dataset[dict[str, Any]]):
    """Pictures at one side with their captions; decoded once and kept in memory when the whole set is small."""

    def __init__(self, rows: datasets.Dataset, recipe: DataRecipe, side: int):
        self.rows = rows
        self.side = side
        self.image_column = recipe.image_column
        self.captions: list[str] = [caption or "" for caption in rows[recipe.caption_column]]
        self.pixels: torch.Tensor | None = None
        if len(rows) * 3 * side * side <= CACHE_LIMIT_BYTES:
            self.pixels = torch.stack([self._decode(index) for index in range(len(rows))])

    def __len__(self) -> int:
        return len(self.captions)

    def __getitem__(self, index: int) -> dict[str, Any]:
        """One picture, `{"pixels": uint8 (3, side, side), "caption": text}`."""
        pixels = self._decode(index) if self.pixels is None else self.pixels[index]
        return {"pixels": pixels, "caption": self.captions[index]}

    def _decode(self, index: int) -> torch.Tensor:
        return square_pixels(self.rows[index][self.image_column], self.side)


class ShuffledBatches(Sampler[list[int]]):
    """Endless batches of row numbers, a function of (seed, position) alone: any worker count, any restart, same order.

    Position p of the endless stream is entry p mod N of a permutation drawn from (seed, p div N). A process takes the
    rows `rank * batch_size ...` of each global batch.
    """

    def __init__(self, num_rows: int, batch_size: int, seed: int, start_batch: int = 0, rank: int = 0, world: int = 1):
        self.num_rows, self.batch_size, self.seed = num_rows, batch_size, seed
        self.start_batch, self.rank, self.world = start_batch, rank, world

    def __iter__(self) -> Iterator[list[int]]:
        position = (self.start_batch * self.world + self.rank) * self.batch_size
        epoch, order = -1, torch.empty(0, dtype=torch.long)
        while True:
            batch = []
            for offset in range(self.batch_size):
                wanted, entry = divmod(position + offset, self.num_rows)
                if wanted != epoch:
                    epoch, order = wanted, epoch_order(self.num_rows, self.seed, wanted)
                batch.append(int(order[entry]))
            yield batch
            position += self.batch_size * self.world


def epoch_order(num_rows: int, seed: int, epoch: int) -> torch.Tensor:
    """The permutation of 0..num_rows-1 that belongs to (seed, epoch)."""
    generator = torch.Generator().manual_seed(derive_seed(seed, epoch))
    return torch.randperm(num_rows, generator=generator)


def derive_seed(*numbers: int) -> int:
    """Mix integers into one 63-bit seed, so that neighbouring (seed, step, rank) give unrelated random streams."""
    words = [part for number in numbers for part in (number & 0xFFFFFFFF, (number >> 32) & 0xFFFFFFFF)]
    state = np.random.SeedSequence(words).generate_state(1, np.uint64)
    return int(state[0] >> np.uint64(1))


def collate(examples: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """`{"pixels": uint8 (B, 3, side, side), "captions": B texts}`."""
    return {
        "pixels": torch.stack([example["pixels"] for example in examples]),
        "captions": [example["caption"] for example in examples],
    }


def endless_batches(
    images: CaptionedImages, batches: ShuffledBatches, num_workers: int = 0
) -> Iterator[dict[str, Any]]:
    """Collated batches in the order of `batches`, without end."""
    return iter(DataLoader(images, batch_sampler=batches, collate_fn=collate, num_workers=num_workers))
