# SPDX-License-Identifier: Apache-2.0
"""Encoding the captions of a run before training, so that no text encoder is needed in memory."""

from pathlib import Path

import torch
from accelerate import Accelerator

from ...processes import wait_for_everyone
from ..data.sources import texts_of
from ..data.text.features_writer import CaptionEncoder, write_text_embeddings
from ..modules.text_encoder import frozen_text_encoder
from ..precision import frozen_dtype
from ..recipe.recipe import Recipe
from ..state.run import RunOptions


def write_own_embeddings(recipe: Recipe, options: RunOptions, accelerator: Accelerator) -> None:
    """Encode all texts of a run on the main process, if `pre_compute_text_embeddings` is set.

    If a call was interrupted, the next one continues it.

    Raises:
        ValueError: the recipe's text encoder is a new one.
    """
    if not options.pre_compute_text_embeddings or recipe.data.embeddings_dir is None:
        return
    if accelerator.is_main_process:
        source, text_encoder, tokenizer = frozen_text_encoder(recipe, options.cache_dir)
        # In the dtype that it would have in training.
        dtype = frozen_dtype(str(accelerator.mixed_precision))
        torch.nn.Module.to(text_encoder, accelerator.device, dtype).eval()
        encoder = CaptionEncoder(source, text_encoder, tokenizer, recipe.max_sequence_length)
        write_text_embeddings(Path(recipe.data.embeddings_dir), texts_of(recipe), encoder)
    wait_for_everyone(accelerator)
