# SPDX-License-Identifier: Apache-2.0
"""A data set of twelve drawn images and a recipe that trains on it in a second."""

import dataclasses
import functools
from pathlib import Path

import datasets
from PIL import Image, ImageDraw

from diffusers_mdm.training.recipe.loading import load_recipe
from diffusers_mdm.training.recipe.recipe import Recipe
from diffusers_mdm.training.recipe.stage import StageRecipe

RECIPES = Path(__file__).parents[2] / "training" / "recipes"
COLORS = ("red", "green", "blue", "orange")
SHAPES = ("rectangle", "ellipse", "line")


def write_images(folder: Path, side: int = 16) -> Path:
    """Save a parquet data set of captioned shapes, `text` and `image`, in `folder`."""
    rows = {"image": [], "text": []}
    for color in COLORS:
        for shape in SHAPES:
            image = Image.new("RGB", (side, side), "white")
            getattr(ImageDraw.Draw(image), shape)((3, 3, side - 4, side - 4), fill=color)
            rows["image"].append(image)
            rows["text"].append(f"{color} {shape}")
    features = datasets.Features({"image": datasets.Image(), "text": datasets.Value("string")})
    folder.mkdir(parents=True, exist_ok=True)
    datasets.Dataset.from_dict(rows, features=features).to_parquet(str(folder / "train-00000-of-00001.parquet"))
    return folder


@functools.cache
def shipped_recipe(name: str) -> Recipe:
    """A recipe of the package, read once by all tests."""
    return load_recipe(RECIPES / f"{name}.yaml")


def tiny_recipe(data_dir: Path, **stage_fields: object) -> Recipe:
    """The shipped tiny recipe on the images in `data_dir`; `stage_fields` replace fields of both stages."""
    recipe = shipped_recipe("tiny")
    stages = tuple(dataclasses.replace(stage, **stage_fields) for stage in recipe.stages)
    data = dataclasses.replace(recipe.data, path=str(data_dir))
    return dataclasses.replace(recipe, data=data, stages=stages)


def learning_stage(**fields: object) -> StageRecipe:
    """A stage of one level, with these fields."""
    settings: dict[str, object] = {"name": "one", "levels": 1, "batch_size": 4, "learning_rate": 1e-3, "steps": 4}
    return StageRecipe(**{**settings, **fields})
