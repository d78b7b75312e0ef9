# SPDX-License-Identifier: Apache-2.0
"""Sheets of samples: every level, several seeds, and the real image."""

import numpy as np
import pytest
import torch
from PIL import Image

from diffusers_mdm.evaluation.sample_sheet import LABEL_WIDTH, draw_seeds, fitted, sample_sheet
from diffusers_mdm.pipelines.image_grid import GAP, MIN_CELL
from tests.pipelines.tiny_pipeline import make_pipeline

CAPTIONS = ["a red apple", "the blue cat", "a sad dog"]


def test_every_seed_gives_an_image_for_every_caption_at_every_level():
    pipeline = make_pipeline()
    samples = draw_seeds(pipeline, CAPTIONS, [3, 4], batch_size=2, settings={"num_inference_steps": 1})
    assert [[[image.size for image in level] for level in levels] for levels in samples] == [
        [[(8, 8)] * 3, [(16, 16)] * 3]
    ] * 2
    alone = pipeline(CAPTIONS[2], generator=torch.Generator().manual_seed(4), num_inference_steps=1).images[0]
    assert np.abs(np.asarray(alone, np.int16) - np.asarray(samples[1][-1][2], np.int16)).max() <= 1


@pytest.mark.parametrize("num_levels", [1, 2, 3])
def test_levels_and_seeds_and_the_real_image_are_columns(num_levels):
    sides = [8, 32, 128][-num_levels:]
    shades = [
        [[Image.new("L", (side, side), 40 * seed + 10 * row + 100) for row in range(2)] for side in sides]
        for seed in range(3)
    ]
    samples = [[[image.convert("RGB") for image in level] for level in levels] for levels in shades]
    real = Image.new("RGB", (256, 256), "black")
    sheet = sample_sheet(samples, ["one", "two"], [5, 6, 7], [real, None])
    columns = num_levels + 2 + 1
    assert sheet.width == LABEL_WIDTH + 2 * GAP + columns * (MIN_CELL + GAP)
    middles = [LABEL_WIDTH + 2 * GAP + number * (MIN_CELL + GAP) + MIN_CELL // 2 for number in range(columns)]
    rows = [sheet.height - GAP - MIN_CELL // 2 - number * (MIN_CELL + GAP) for number in (1, 0)]
    found = [[sheet.getpixel((x, y))[0] for x in middles] for y in rows]
    assert found == [[100] * num_levels + [140, 180, 0], [110] * num_levels + [150, 190, 255]]


def test_without_a_data_set_there_is_no_column_of_real_images():
    image = Image.new("RGB", (128, 128))
    assert sample_sheet([[[image]]], ["one"], [0]).width == LABEL_WIDTH + 2 * GAP + MIN_CELL + GAP


def test_images_are_enlarged_by_repeating_pixels_and_reduced_by_averaging():
    stripes = Image.fromarray(np.tile(np.array([0, 255], np.uint8), (4, 2))).convert("RGB")
    assert set(np.unique(np.asarray(fitted(stripes, 8)))) == {0, 255}
    assert set(np.unique(np.asarray(fitted(stripes, 2)))) <= {127, 128}
    assert fitted(stripes, 4) is stripes
