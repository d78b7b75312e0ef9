# SPDX-License-Identifier: Apache-2.0
"""Checks of the settings of a whole model; the settings of levels are checked in `level_config`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from ..checked_values import check_flag, check_number, check_whole_number
from .level_config import MAX_CHANNELS, MAX_LAYERS, LevelConfig

# Smallest and largest value of each setting, and whether it can be None.
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


def resolve_time_embed_dim(config: Mapping[str, Any], level_configs: Sequence[LevelConfig]) -> int:
    """Return the width of the time embedding: as configured, or 4 times the first channels of level 0."""
    return config["time_embed_dim"] or 4 * level_configs[0].block_out_channels[0]


def check_model_config(config: Mapping[str, Any], level_configs: Sequence[LevelConfig]) -> None:
    """Check that settings are in a sensible range and do not contradict each other."""
    for name, (low, high, may_be_none) in _WHOLE_SETTINGS.items():
        if config[name] is not None or not may_be_none:
            check_whole_number(config[name], f"`{name}`", low, high)
    check_number(config["norm_eps"], "`norm_eps`", 0.0, 1.0, above=True)
    check_flag(config["use_cross_attention_mask"], "`use_cross_attention_mask`")
    if config["output_bound"] is not None:
        check_number(config["output_bound"], "`output_bound`", 0.0, above=True, advice="None means no bound.")
    width = resolve_time_embed_dim(config, level_configs)
    if width % 8:
        raise ValueError(f"`time_embed_dim` = {width} must be a multiple of 8: a quarter of it is sines and cosines.")
    text_dim = config["cross_attention_dim"]
    if text_dim is None and (config["encoder_hid_dim"] is not None or config["num_text_layers"]):
        raise ValueError(
            f"`encoder_hid_dim` = {config['encoder_hid_dim']} and `num_text_layers` = {config['num_text_layers']} "
            f"are for text, but `cross_attention_dim` is None; set it to the width of the text features inside the "
            f"model."
        )
    if config["output_bound"] is not None and len(level_configs) > 1:
        raise ValueError("`output_bound` is defined for models of one level only; set it to None.")
