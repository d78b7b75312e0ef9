# SPDX-License-Identifier: Apache-2.0
"""Checks of a model's config and of the conditions it is called with; each refusal says what was expected."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch

from .level_config import LevelConfig


def resolve_time_embed_dim(config: Mapping[str, Any], rows: Sequence[LevelConfig]) -> int:
    """Width of the time embedding: as configured, or 4 times the first channels of level 0."""
    return config["time_embed_dim"] or 4 * rows[0].block_out_channels[0]


def check_model_config(config: Mapping[str, Any], rows: Sequence[LevelConfig]) -> None:
    """Refuse settings that contradict each other, naming both."""
    width = resolve_time_embed_dim(config, rows)
    if width % 8:
        raise ValueError(f"`time_embed_dim` = {width} must be a multiple of 8: a quarter of it is sines and cosines.")
    text_dim = config["cross_attention_dim"]
    if text_dim is None and (config["encoder_hid_dim"] is not None or config["num_text_layers"]):
        raise ValueError(
            f"`encoder_hid_dim` = {config['encoder_hid_dim']} and `num_text_layers` = {config['num_text_layers']} are "
            "about text, but `cross_attention_dim` is None; set it to the width of the text inside the model."
        )
    if config["output_bound"] is not None and len(rows) > 1:
        raise ValueError("`output_bound` is defined for models of one level only; set it to None.")
    if config["output_bound"] is not None and config["output_bound"] <= 0:
        raise ValueError(f"`output_bound` = {config['output_bound']} must be positive, or None for no bound.")


def check_text(config: Mapping[str, Any], states: torch.Tensor, mask: torch.Tensor | None) -> None:
    """Refuse text states `(B, L, D)` of another width and masks that are not `(B, L)`."""
    width = config["encoder_hid_dim"] or config["cross_attention_dim"]
    if width is None:
        raise ValueError("This model has no text (`cross_attention_dim` is None).")
    if states.ndim != 3 or states.shape[-1] != width:
        raise ValueError(
            f"`encoder_hidden_states` has shape {tuple(states.shape)}; expected (batch, tokens, {width}). Is this the "
            "text encoder the model was trained with?"
        )
    if mask is not None and mask.shape != states.shape[:2]:
        raise ValueError(
            f"`encoder_attention_mask` has shape {tuple(mask.shape)}; expected {tuple(states.shape[:2])}, one entry "
            "for each token of `encoder_hidden_states`."
        )


def expand_to_batch(values: torch.Tensor, batch: int, name: str) -> torch.Tensor:
    """A scalar, `(1,)` or `(batch,)` as `(batch,)`."""
    values = values.reshape(-1) if values.ndim == 0 else values
    # Compared one by one: a compiled model with sizes that vary does not find them in a tuple.
    if values.ndim != 1 or (values.shape[0] != 1 and values.shape[0] != batch):
        raise ValueError(
            f"`{name}` has shape {tuple(values.shape)}; expected one value for all, or one for each of the {batch} "
            "rows of level 0."
        )
    return values.expand(batch)
