# SPDX-License-Identifier: Apache-2.0
"""A model that may learn sixteen real images by heart draws them back from their captions."""

import io

import numpy
import pytest
import torch
from PIL import Image

from diffusers_mdm import MDMPipeline
from diffusers_mdm.training.data.tables.source import TableSource
from diffusers_mdm.training.loop.engine import run_recipe
from diffusers_mdm.training.recipe.loading import load_recipe
from diffusers_mdm.training.state.run import RunOptions
from tests.training.tiny_run import RECIPES


@pytest.mark.slow
def test_sixteen_images_are_drawn_back_from_their_captions(tmp_path):
    recipe = load_recipe(RECIPES / "emoji_overfit.yaml")
    run_recipe(recipe, RunOptions(tmp_path, report_to=None, checkpointing_steps=1000))
    rows = TableSource(recipe.data).training_records()
    files = [io.BytesIO(row["image"]["bytes"]) for row in rows]
    images = numpy.stack([numpy.asarray(Image.open(file).convert("RGB")) for file in files]) / 255
    captions = [row["text"] for row in rows]
    assert len(set(captions)) == 16

    pipeline = MDMPipeline.from_pretrained(tmp_path)
    generators = [torch.Generator().manual_seed(number) for number in range(16)]
    drawn = pipeline(
        captions, num_inference_steps=25, guidance_scale=1.0, generator=generators, output_type="np"
    ).images

    errors = ((drawn[:, None] - images[None]) ** 2).mean((2, 3, 4))
    nearest = errors.argmin(1)
    assert (nearest == numpy.arange(16)).sum() >= 15
    # A fifth of what the mean of the sixteen images misses by: the drawing is the image, not its silhouette.
    missed_by_mean = ((images.mean(0) - images) ** 2).mean()
    assert numpy.diag(errors).mean() < 0.2 * missed_by_mean
