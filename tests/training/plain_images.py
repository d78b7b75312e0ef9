# SPDX-License-Identifier: Apache-2.0
"""A folder of images without captions, and a recipe of an unconditional model that trains on it in a second."""

import dataclasses
from pathlib import Path
from typing import Any

from diffusers_mdm.training.recipe.loading import load_recipe
from diffusers_mdm.training.recipe.recipe import Recipe
from tests.training.image_files import png
from tests.training.tiny_run import RECIPES

COLORS = ("red", "green", "blue", "orange", "black", "gray")


def write_plain(folder: Path, size: tuple[int, int] = (16, 16)) -> Path:
    """Save six images of one colour each as files, without any text."""
    folder.mkdir(parents=True, exist_ok=True)
    for color in COLORS:
        (folder / f"{color}.png").write_bytes(png(color, size))
    return folder


def plain_model() -> dict[str, Any]:
    """The model of the shipped tiny recipe without text."""
    return {
        key: value
        for key, value in load_recipe(RECIPES / "tiny.yaml").model.items()
        if not key.startswith(("cross_", "encoder_"))
    }


def plain_recipe(folder: Path, **fields: Any) -> Recipe:
    """The shipped tiny recipe without text; two steps per stage."""
    tiny = load_recipe(RECIPES / "tiny.yaml")
    settings = {
        "model": plain_model(),
        "data": dataclasses.replace(tiny.data, path=str(folder), caption=""),
        "text_encoder": None,
        "stages": tuple(dataclasses.replace(stage, steps=2, lr_warmup_steps=0) for stage in tiny.stages),
        "validation": dataclasses.replace(tiny.validation, prompts=(), num_validation_images=2),
        **fields,
    }
    return dataclasses.replace(tiny, **settings)
