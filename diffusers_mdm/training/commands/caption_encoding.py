# SPDX-License-Identifier: Apache-2.0
"""`diffusers-mdm precompute`: encode all texts of a run before training."""

import dataclasses
import logging
from pathlib import Path
from typing import Any

import torch
from accelerate import PartialState

from ...processes import check_alone
from ..data.sources import texts_of
from ..data.text.features_writer import CaptionEncoder, write_text_embeddings
from ..modules.text_encoder import frozen_text_encoder
from ..precision import DTYPES
from ..recipe.recipe import Recipe
from .flags import base_recipe, override
from .parser import check_together


def encode_captions(given: dict[str, Any], folder: Path) -> None:
    """Encode all texts of the run that the flags describe.

    Args:
        given: the flags by name: those of training, and `precision`, `batch_size` and `captions_per_file`.
        folder: folder to write or complete.

    Raises:
        ValueError: several processes were launched, the flags contradict each other, the recipe has no frozen text
            encoder, the data does not fit, or the folder belongs to another text encoder.
    """
    check_alone()
    _write(recipe_of_captions(given), folder, given)


def recipe_of_captions(given: dict[str, Any]) -> Recipe:
    """Return the recipe of a training run with these flags; its length does not matter here.

    Raises:
        ValueError: the flags contradict each other, or the recipe or the data does not fit.
    """
    check_together(given)
    recipe = override(*base_recipe({**given, "max_train_steps": 1}))
    images = recipe.images and dataclasses.replace(recipe.images, embeddings_dir=None)
    return dataclasses.replace(recipe, data=dataclasses.replace(recipe.data, embeddings_dir=None), images=images)


def _write(recipe: Recipe, folder: Path, given: dict[str, Any]) -> None:
    """Encode the recipe's texts into `folder`."""
    source, text_encoder, tokenizer = frozen_text_encoder(recipe, given.get("cache_dir"))
    own = "fp32" if recipe.mixed_precision == "no" else recipe.mixed_precision
    torch.nn.Module.to(text_encoder, PartialState().device, DTYPES[given.get("precision", own)]).eval()
    encoder = CaptionEncoder(source, text_encoder, tokenizer, recipe.max_sequence_length, given.get("batch_size", 32))
    index = write_text_embeddings(folder, texts_of(recipe), encoder, given.get("captions_per_file", 8192))
    logging.getLogger(__name__).info("%d captions are in %s.", sum(index.files.values()), folder)
