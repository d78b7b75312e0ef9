# SPDX-License-Identifier: Apache-2.0
"""Checks of a model's config and of the conditions it is called with; each refusal says what was expected."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch

from ..checked_values import check_flag, check_number, check_tensor, check_whole_number
from ..config_reading import describe
from .level_config import MAX_CHANNELS, MAX_LAYERS, LevelConfig
from .text_conditioning import TextConditioning

# Smallest and largest value of each setting, and whether it may be None.
_WHOLE_SETTINGS = {
    "sample_size": (1, 65536, False),
    "in_channels": (1, MAX_CHANNELS, False),
    "out_channels": (1, MAX_CHANNELS, False),
    "num_attention_heads": (1, MAX_CHANNELS, False),
    "attention_norm_num_groups": (1, MAX_CHANNELS, False),
    "time_embed_dim": (8, MAX_CHANNELS, True),
    "encoder_hid_dim": (1, MAX_CHANNELS, True),
    "cross_attention_dim": (1, MAX_CHANNELS, True),
    "num_text_layers": (0, MAX_LAYERS, False),
    "num_class_embeds": (1, 10_000_000, True),
}


def resolve_time_embed_dim(config: Mapping[str, Any], rows: Sequence[LevelConfig]) -> int:
    """Width of the time embedding: as configured, or 4 times the first channels of level 0."""
    return config["time_embed_dim"] or 4 * rows[0].block_out_channels[0]


def check_model_config(config: Mapping[str, Any], rows: Sequence[LevelConfig]) -> None:
    """Refuse settings that are out of any sensible range, or contradict each other, naming both."""
    for name, (low, high, may_be_none) in _WHOLE_SETTINGS.items():
        if config[name] is not None or not may_be_none:
            check_whole_number(config[name], f"`{name}`", low, high)
    check_number(config["norm_eps"], "`norm_eps`", 0.0, 1.0, above=True)
    check_flag(config["use_cross_attention_mask"], "`use_cross_attention_mask`")
    if config["output_bound"] is not None:
        check_number(config["output_bound"], "`output_bound`", 0.0, above=True, advice="None means no bound.")
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


def check_text(config: Mapping[str, Any], states: torch.Tensor, mask: torch.Tensor | None) -> None:
    """Refuse text states `(B, L, D)` of another width and masks that are not `(B, L)`."""
    width = config["encoder_hid_dim"] or config["cross_attention_dim"]
    if width is None:
        raise ValueError("This model has no text (`cross_attention_dim` is None).")
    check_tensor(states, "encoder_hidden_states", f"a tensor (batch, tokens, {width}), or what `encode_text` returns")
    if states.ndim != 3 or states.shape[-1] != width or states.shape[1] == 0:
        raise ValueError(
            f"`encoder_hidden_states` has shape {tuple(states.shape)}; expected (batch, tokens, {width}). Is this the "
            "text encoder the model was trained with?"
        )
    if mask is None:
        return
    check_tensor(mask, "encoder_attention_mask", "a tensor (batch, tokens), zero where there is padding")
    if mask.shape != states.shape[:2]:
        raise ValueError(
            f"`encoder_attention_mask` has shape {tuple(mask.shape)}; expected {tuple(states.shape[:2])}, one entry "
            "for each token of `encoder_hidden_states`."
        )


def check_text_fits(text: torch.Tensor | TextConditioning | None, has_text: bool) -> None:
    """Refuse text for a model that has none, a model of text without any, and what is neither states nor encoded."""
    if has_text != (text is not None):
        raise ValueError(
            "This model reads text: pass `encoder_hidden_states` (see MDMPipeline.encode_prompt)."
            if has_text
            else "This model has no text (`cross_attention_dim` is None), but `encoder_hidden_states` was passed."
        )
    if text is not None and not isinstance(text, TextConditioning):
        check_tensor(text, "encoder_hidden_states", "a tensor (batch, tokens, channels) or what `encode_text` returns")


def check_classes(labels: torch.Tensor | None, num_classes: int | None) -> None:
    """Refuse class labels `(B,)` for a model that has none, a model of classes without any, and labels it lacks."""
    if (num_classes is not None) != (labels is not None):
        raise ValueError(
            "This model is conditioned on classes: pass `class_labels` of shape (batch,)."
            if num_classes is not None
            else "`class_labels` was passed, but this model has no classes (`num_class_embeds` is None)."
        )
    if labels is None or num_classes is None:
        return
    check_tensor(labels, "class_labels", "a tensor (batch,)", is_floating=False)
    # Looking at values on an accelerator would make every step wait for it, and a graph cannot. Tensors of a class of
    # their own may have no values, such as those by which the memory of a training step is estimated.
    has_values = type(labels) is torch.Tensor and labels.device.type == "cpu" and labels.numel() > 0
    if has_values and not torch.compiler.is_compiling():
        low, high = int(labels.min()), int(labels.max())
        if low < 0 or high >= num_classes:
            raise ValueError(f"`class_labels` run from {low} to {high}; expected 0 to {num_classes - 1}.")


def as_row_values(values: Any, name: str, batch: int, device: torch.device) -> torch.Tensor:
    """A number, a tensor or a list of numbers as a tensor `(batch,)` on a device.

    Raises:
        TypeError: it is none of these.
        ValueError: it has another number of entries, or a number is not finite.
    """
    if not isinstance(values, torch.Tensor):
        if isinstance(values, (bool, str, bytes)) or values is None:
            raise TypeError(f"`{name}` is {describe(values)}; expected a number or a tensor of numbers.")
        if isinstance(values, float) and not torch.compiler.is_compiling():
            check_number(values, f"`{name}`")
        try:
            values = torch.as_tensor(values)
        except (TypeError, ValueError, RuntimeError) as error:
            raise TypeError(
                f"`{name}` is {describe(values)} ({type(values).__name__}); expected a number or a tensor of numbers."
            ) from error
    if values.dtype == torch.bool or values.is_complex():
        raise TypeError(f"`{name}` holds {values.dtype}; expected numbers.")
    # Not every device knows float64; time and conditions are embedded in float32.
    values = values.float() if values.dtype == torch.float64 else values
    return expand_to_batch(values.to(device), batch, name)


def expand_to_batch(values: torch.Tensor, batch: int, name: str) -> torch.Tensor:
    """A scalar, `(1,)` or `(batch,)` as `(batch,)`."""
    values = values.reshape(-1) if values.ndim == 0 else values
    # Compared one by one: a compiled model with sizes that vary does not find them in a tuple.
    if values.ndim != 1 or (values.shape[0] != 1 and values.shape[0] != batch):
        raise ValueError(
            f"`{name}` has shape {tuple(values.shape)}; expected one value for all, or one for each of the {batch} "
            "batch rows of level 0."
        )
    return values.expand(batch)
