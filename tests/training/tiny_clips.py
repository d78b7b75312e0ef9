# SPDX-License-Identifier: Apache-2.0
"""A data set of drawn clips, and the shipped tiny recipe of clips on it and on the drawn images."""

import dataclasses
import io
from pathlib import Path

import datasets
from PIL import Image, ImageDraw

from diffusers_mdm.training.recipe.loading import load_recipe
from diffusers_mdm.training.recipe.recipe import Recipe
from tests.training.tiny_run import COLORS, RECIPES

NUM_FRAMES = 8


def clip_file(color: str, step: int, side: int = 16) -> bytes:
    """A square that moves over 8 frames, as an animated WebP without losses."""
    frames = []
    for time in range(NUM_FRAMES):
        image = Image.new("RGB", (side, side), "white")
        ImageDraw.Draw(image).rectangle((time * step, 4, time * step + 4, 9), fill=color)
        frames.append(image)
    stream = io.BytesIO()
    frames[0].save(stream, "WEBP", save_all=True, append_images=frames[1:], duration=100, lossless=True)
    return stream.getvalue()


def write_clips(folder: Path) -> Path:
    """Save a parquet data set of eight captioned clips, `text` and `video`, in `folder`."""
    kinds = [(color, step) for color in COLORS for step in (1, 2)]
    rows = {
        "video": [clip_file(color, step) for color, step in kinds],
        "text": [f"{color} square, {'slow' if step == 1 else 'fast'}" for color, step in kinds],
    }
    folder.mkdir(parents=True, exist_ok=True)
    datasets.Dataset.from_dict(rows).to_parquet(str(folder / "train-00000-of-00001.parquet"))
    return folder


def video_recipe(clips_dir: Path, images_dir: Path | None, **stage_fields: object) -> Recipe:
    """The shipped tiny recipe, two steps a stage; `stage_fields` replace fields of all stages, None drops images."""
    recipe = load_recipe(RECIPES / "tiny_video.yaml")
    fields = {"steps": 2, **stage_fields}
    images = recipe.images
    assert images is not None
    return dataclasses.replace(
        recipe,
        data=dataclasses.replace(recipe.data, path=str(clips_dir), max_train_samples=None),
        images=None
        if images_dir is None
        else dataclasses.replace(images, path=str(images_dir), max_train_samples=None),
        stages=tuple(dataclasses.replace(stage, **fields) for stage in recipe.stages),
        validation=dataclasses.replace(recipe.validation, prompts=("red square, slow",)),
    )
