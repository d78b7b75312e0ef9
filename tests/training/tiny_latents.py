# SPDX-License-Identifier: Apache-2.0
"""The tiny recipe over the latents of a tiny autoencoder: levels of 16 and 32 pixels."""

import dataclasses
from pathlib import Path
from typing import Any

from diffusers_mdm.training.recipe.pretrained import VaeRecipe
from diffusers_mdm.training.recipe.recipe import Recipe
from tests.pipelines.tiny_tasks import make_vae, task
from tests.training.tiny_run import tiny_recipe

FACTOR, CHANNELS = 2, 4  # of `make_vae`


def save_vae(folder: Path, **changes: Any) -> Path:
    """Save the tiny autoencoder in `folder`."""
    make_vae(**changes).save_pretrained(folder)
    return folder


def save_latent_pipeline(folder: Path) -> Path:
    """Save a pipeline of latents in `folder`."""
    task("latent text").make().save_pretrained(folder)
    return folder


def of_latents(recipe: Recipe, vae_dir: Path) -> Recipe:
    """A recipe of pixels, over the latents of `vae_dir`."""
    model = {**recipe.model, "in_channels": CHANNELS, "out_channels": CHANNELS}
    return dataclasses.replace(recipe, model=model, vae=VaeRecipe(str(vae_dir)))


def latent_recipe(images_dir: Path, vae_dir: Path, **stage_fields: Any) -> Recipe:
    """The shipped tiny recipe over latents; `stage_fields` replace fields of both stages."""
    return of_latents(tiny_recipe(images_dir, **stage_fields), vae_dir)
