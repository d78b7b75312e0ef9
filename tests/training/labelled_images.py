# SPDX-License-Identifier: Apache-2.0
"""The drawn images with classes in place of captions, a recipe that trains on them, and a pipeline of classes."""

import dataclasses
from pathlib import Path
from typing import Any

import datasets

from diffusers_mdm import MDMClassConditionalPipeline
from diffusers_mdm.training.recipe.loading import load_recipe
from diffusers_mdm.training.recipe.recipe import Recipe
from tests.pipelines.tiny_pipeline import make_scheduler
from tests.pipelines.tiny_tasks import make_class_unet
from tests.training.tiny_run import RECIPES, SHAPES

NAMES = dict(enumerate(SHAPES))


def write_labelled(images_dir: Path, folder: Path, names: tuple[str, ...] | None = SHAPES, first: int = 0) -> Path:
    """Save the images of `images_dir` with the column `kind` in `folder`: three classes from `first` on."""
    rows = datasets.load_dataset(str(images_dir), split="train").remove_columns("text")
    rows = rows.add_column("kind", [first + number % 3 for number in range(len(rows))])
    if names is not None:
        rows = rows.cast_column("kind", datasets.ClassLabel(names=list(names)))
    folder.mkdir(parents=True, exist_ok=True)
    rows.to_parquet(str(folder / "train.parquet"))
    return folder


def class_recipe(folder: Path, num_class_embeds: int = 4, **fields: Any) -> Recipe:
    """The shipped tiny recipe, of classes in place of texts; two steps a stage."""
    tiny = load_recipe(RECIPES / "tiny.yaml")
    model = {key: value for key, value in tiny.model.items() if not key.startswith(("cross_", "encoder_"))}
    settings = {
        "model": {**model, "num_class_embeds": num_class_embeds},
        "data": dataclasses.replace(tiny.data, path=str(folder), label_column="kind", caption=""),
        "text_encoder": None,
        "stages": tuple(dataclasses.replace(stage, steps=2, lr_warmup_steps=0) for stage in tiny.stages),
        "validation": dataclasses.replace(tiny.validation, prompts=()),
        **fields,
    }
    return dataclasses.replace(tiny, **settings)


def save_class_pipeline(folder: Path, id2label: dict[int, str] | None) -> Path:
    """Save a tiny pipeline of three classes, 8 and 16 pixels, with these names."""
    unet = make_class_unet(num_class_embeds=4)
    MDMClassConditionalPipeline(unet=unet, scheduler=make_scheduler(), id2label=id2label).save_pretrained(folder)
    return folder
