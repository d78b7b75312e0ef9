# SPDX-License-Identifier: Apache-2.0
"""Runs on images of different aspect ratios: each batch has one size, resumed runs agree, pipelines know the sizes."""

import dataclasses
import itertools
import shutil
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from diffusers_mdm import DiffusionPipeline
from diffusers_mdm.training.commands.dry_run import describe_run
from diffusers_mdm.training.data.order import BatchOrder
from diffusers_mdm.training.data.sources import open_training_images, open_validation_images
from diffusers_mdm.training.loop.engine import run_recipe
from diffusers_mdm.training.recipe.recipe import Recipe
from diffusers_mdm.training.state.run import RunOptions
from tests.training.image_files import png
from tests.training.loop.run_folders import NOTHING_BESIDE
from tests.training.plain_images import plain_recipe

BUCKETS = ((12, 20), (20, 12))
WEIGHTS = Path("unet") / "diffusion_pytorch_model.safetensors"


@pytest.fixture(scope="module")
def mixed_dir(tmp_path_factory):
    """Three wide images, three tall ones of other sizes, and a damaged file."""
    folder = tmp_path_factory.mktemp("mixed")
    for number, size in enumerate([(40, 24), (20, 12), (80, 50), (24, 40), (12, 20), (30, 60)]):
        (folder / f"{number}.png").write_bytes(png((number * 40, 90, 200 - number * 30), size))
    (folder / "6.png").write_bytes(b"damaged")
    return folder


def recipe(folder: Path, **fields) -> Recipe:
    plain = plain_recipe(folder)
    data = dataclasses.replace(plain.data, **{"aspect_ratio_buckets": BUCKETS, "max_skipped_images": 1, **fields})
    return dataclasses.replace(plain, data=data)


def options(output_dir: Path, **fields) -> RunOptions:
    settings = {"report_to": None, "checkpointing_steps": 1, "checkpoints_total_limit": None, "validation_steps": 100}
    return RunOptions(output_dir=output_dir, **{**settings, **fields})


@pytest.fixture(scope="module")
def finished(mixed_dir, tmp_path_factory):
    return run_recipe(recipe(mixed_dir), options(tmp_path_factory.mktemp("runs") / "mixed"))


def test_batches_have_the_size_of_their_bucket_and_the_scale_of_their_images(mixed_dir):
    data = recipe(mixed_dir).data
    images = open_training_images(data, 16, {"scale": 16.0}, buckets=BUCKETS)
    batches = list(itertools.islice(images.batches(BatchOrder(batch_size=3)), 6))
    assert {tuple(batch.pixels.shape) for batch in batches} == {(3, 3, 12, 20), (3, 3, 20, 12)}
    # 40 x 24 pixels are shrunk by 2, as a square of 32 would be; 20 x 12 are not resized; 60 x 30 are shrunk by 2.5.
    tall = next(batch for batch in batches if batch.pixels.shape[-1] == 12)
    assert sorted(tall.micro_conditioning["scale"].tolist()) == [16.0, 32.0, 40.0]
    assert len(images.skipped) <= 1


def test_pixels_are_not_distorted(mixed_dir, tmp_path):
    ramp = Image.linear_gradient("L").resize((20, 12)).convert("RGB")
    ramp.save(tmp_path / "ramp.png")
    Image.new("RGB", (12, 20)).save(tmp_path / "tall.png")
    data = dataclasses.replace(recipe(mixed_dir).data, path=str(tmp_path))
    images = open_training_images(data, 16, buckets=BUCKETS)
    batches = itertools.islice(images.batches(BatchOrder(batch_size=1)), 2)
    wide = next(batch.pixels[0] for batch in batches if batch.pixels.shape[-1] == 20)
    assert wide.permute(1, 2, 0).numpy().tobytes() == ramp.tobytes()


def test_held_out_images_have_one_size(mixed_dir):
    data = dataclasses.replace(recipe(mixed_dir).data, validation_split="train")
    images = open_validation_images(data, 16, buckets=((12, 20), (16, 12)))
    assert images is not None
    assert images.load([0, 3]).pixels.shape == (2, 3, 16, 12)  # the bucket that is closest to a square


def test_a_resumed_run_has_the_same_weights(finished, mixed_dir, tmp_path):
    shutil.copytree(finished, tmp_path / "again")
    for step in (2, 3, 4):
        shutil.rmtree(tmp_path / "again" / f"checkpoint-{step}")
    run_recipe(recipe(mixed_dir), options(tmp_path / "again", **NOTHING_BESIDE))
    first, again = load_file(finished / WEIGHTS), load_file(tmp_path / "again" / WEIGHTS)
    assert all(torch.equal(first[name], again[name]) for name in first)


def test_the_pipeline_generates_the_sizes(finished):
    pipeline = DiffusionPipeline.from_pretrained(finished)
    pipeline.set_progress_bar_config(disable=True)
    assert pipeline.aspect_ratio_buckets == BUCKETS
    for height, width in (*BUCKETS, (6, 10)):
        images = pipeline(height=height, width=width, num_inference_steps=1, output_type="pt").images
        assert images.shape == (1, 3, height, width)
    text = (finished / "README.md").read_text()
    assert "cropped to the size with the nearest aspect ratio of 12 x 20 and 20 x 12 pixels" in text
    assert (finished / "samples.png").is_file()


def test_a_dry_run_lists_the_sizes(mixed_dir, no_forward):
    wide = recipe(mixed_dir, aspect_ratio_buckets=None, use_aspect_ratio_buckets=True)
    assert "aspect-ratio buckets (height x width): 12 x 20, 12 x 24, 16 x 16, 20 x 12, 24 x 12" in describe_run(wide)
