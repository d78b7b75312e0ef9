# SPDX-License-Identifier: Apache-2.0
"""The clips that come with the project."""

from pathlib import Path

import pytest
import torch

from diffusers_mdm.training.data.sources import (
    open_training_images,
    open_validation_images,
    training_captions,
    validation_captions,
)
from diffusers_mdm.training.recipe.data import DataRecipe

FOLDER = Path(__file__).parents[3] / "training" / "data" / "emoji-clips-64"
MAX_BYTES = 3_000_000


@pytest.fixture(scope="module")
def recipe(tmp_path_factory):
    import datasets

    datasets.config.HF_DATASETS_CACHE = tmp_path_factory.mktemp("cache")
    return DataRecipe(path=str(FOLDER), video_column="video", validation_split="validation", max_train_samples=24)


def test_captions_are_held_out(recipe):
    held_out = set(validation_captions(recipe))
    trained = list(training_captions(DataRecipe(path=str(FOLDER), video_column="video")))
    assert (len(trained), len(held_out)) == (668, 58)
    assert not held_out & set(trained)
    assert all(caption.endswith(", 3d animation") for caption in [*trained, *held_out])


def test_all_held_out_clips_move(recipe):
    clips = open_validation_images(recipe, 64, num_frames=8)
    pixels = clips.load(range(len(clips))).pixels
    assert len(clips.skipped) == 0
    assert pixels.shape == (58, 3, 8, 64, 64)
    assert (pixels.float().diff(dim=2).abs().mean((1, 2, 3, 4)) > 0.25).all()
    # Emoji stand on white.
    assert pixels[..., 0, 0].float().mean() > 250


def test_frames_of_a_clip_belong_together(recipe):
    images = open_training_images(recipe, 64, num_frames=8)
    assert len(images.skipped) == 0
    pixels = images.images.load(range(24)).pixels.float()
    within = pixels.diff(dim=2).abs().mean()
    between = (pixels - pixels.roll(1, 0)).abs().mean()
    assert within < between / 3
    single = open_training_images(recipe, 64).images.load(range(24), seed=5).pixels.float()
    distances = (pixels - single[:, :, None]).abs().mean((1, 3, 4))  # of each frame of a clip to the one drawn
    assert (distances.min(1).values == 0).all()
    assert len(distances.argmin(1).unique()) > 4
    assert torch.equal(single, open_training_images(recipe, 64).images.load(range(24), seed=5).pixels.float())


def test_the_set_is_small():
    assert sum(file.stat().st_size for file in FOLDER.iterdir()) <= MAX_BYTES
