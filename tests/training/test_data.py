# SPDX-License-Identifier: Apache-2.0
import itertools

import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from tiny_run import COLORS, SHAPES

from diffusers_mdm.training import data
from diffusers_mdm.training.data import (
    CaptionedImages,
    ShuffledBatches,
    endless_batches,
    epoch_order,
    load_captioned_split,
    square_pixels,
    to_unit_range,
)
from diffusers_mdm.training.recipe import DataRecipe


def first(batches: ShuffledBatches, number: int) -> list[list[int]]:
    return list(itertools.islice(iter(batches), number))


def test_transparency_becomes_white():
    for mode in ("RGBA", "LA"):
        pixels = square_pixels(Image.new(mode, (8, 8)), 4)
        assert pixels.dtype == torch.uint8
        assert (pixels == 255).all()


def test_wide_pictures_are_cropped_in_the_centre():
    picture = Image.new("RGB", (16, 8), "red")
    picture.paste("blue", (4, 0, 12, 8))
    assert square_pixels(picture, 8).unique(dim=1).flatten().tolist()[-1] == 255
    assert (square_pixels(picture, 4)[0] == 0).all()


def test_resizing_is_what_the_pyramid_does():
    large = torch.randint(0, 256, (3, 32, 32), dtype=torch.uint8)
    picture = Image.fromarray(large.permute(1, 2, 0).numpy())
    small = to_unit_range(square_pixels(picture, 8))
    pooled = F.avg_pool2d(to_unit_range(large)[None], 4)[0]
    # Rows and columns are each rounded to 8 bits.
    assert (small - pooled).abs().max() <= 2 / 255


def test_pixels_span_the_unit_range():
    assert to_unit_range(torch.tensor([0, 255], dtype=torch.uint8)).tolist() == [-1, 1]


def test_every_epoch_sees_every_row_once_in_another_order():
    batches = first(ShuffledBatches(12, 4, seed=3), 6)
    epochs = [list(itertools.chain(*batches[:3])), list(itertools.chain(*batches[3:]))]
    assert all(sorted(epoch) == list(range(12)) for epoch in epochs)
    assert epochs[0] != epochs[1]
    assert epochs[0] == epoch_order(12, 3, 0).tolist()


def test_order_depends_on_seed_and_position_alone():
    whole = first(ShuffledBatches(12, 5, seed=1), 8)
    assert first(ShuffledBatches(12, 5, seed=1, start_batch=3), 5) == whole[3:]
    assert first(ShuffledBatches(12, 5, seed=2), 8) != whole


def test_processes_share_the_batches_of_one_process():
    whole = first(ShuffledBatches(12, 4, seed=1), 6)
    halves = [first(ShuffledBatches(12, 2, seed=1, rank=rank, world=2), 6) for rank in range(2)]
    assert [left + right for left, right in zip(*halves, strict=True)] == whole


@pytest.mark.parametrize("num_workers", [0, 2])
def test_batches_do_not_depend_on_workers(pictures_dir, num_workers):
    recipe = DataRecipe(path=str(pictures_dir))
    images = CaptionedImages(load_captioned_split(recipe, "train"), recipe, side=8)
    order = ShuffledBatches(len(images), 3, seed=0)
    batches = endless_batches(images, order, num_workers)
    for rows in first(order, 5):
        batch = next(batches)
        assert batch["captions"] == [images.captions[row] for row in rows]
        assert torch.equal(batch["pixels"], torch.stack([images[row]["pixels"] for row in rows]))


def test_large_sets_are_read_when_needed(pictures_dir, monkeypatch):
    recipe = DataRecipe(path=str(pictures_dir))
    rows = load_captioned_split(recipe, "train")
    kept = CaptionedImages(rows, recipe, side=8)
    monkeypatch.setattr(data, "CACHE_LIMIT_BYTES", 0)
    read = CaptionedImages(rows, recipe, side=8)
    assert kept.pixels is not None
    assert read.pixels is None
    assert torch.equal(kept[5]["pixels"], read[5]["pixels"])
    assert sorted(kept.captions) == sorted(f"{color} {shape}" for color in COLORS for shape in SHAPES)


def test_missing_split_and_column_name_those_there_are(pictures_dir):
    recipe = DataRecipe(path=str(pictures_dir))
    with pytest.raises(ValueError, match="it has train"):
        load_captioned_split(recipe, "test")
    with pytest.raises(ValueError, match="'caption'; it has image, text"):
        load_captioned_split(DataRecipe(path=str(pictures_dir), caption_column="caption"), "train")
