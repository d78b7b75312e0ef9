# SPDX-License-Identifier: Apache-2.0
"""Configs of tiny models of every kind, and formulas to compare with."""

from typing import Any

import torch

from diffusers_mdm import NestedUNetModel

TEXT_WIDTH = 12


def two_level_config() -> dict[str, Any]:
    """A image model with text, micro-conditioning, attention in both levels and a normalised outer level."""
    return {
        "sample_size": 8,
        "block_out_channels": ((32, 32), (16, 32)),
        "layers_per_block": ((1, 2), (1, 1)),
        "attention_layers_per_block": ((0, 2), (0, 1)),
        "has_mid_block": (True, False),
        "has_attention_ffn": (True, False),
        "norm_num_groups": (8, 8),
        "normalize_input": (False, True),
        "dropout": (0.0, 0.0),
        "micro_conditioning_keys": (("scale",), ("scale",)),
        "micro_conditioning_defaults": ((8.0,), (16.0,)),
        "num_attention_heads": 4,
        "attention_norm_num_groups": 16,
        "encoder_hid_dim": TEXT_WIDTH,
        "cross_attention_dim": 24,
        "num_text_layers": 1,
        "use_cross_attention_mask": True,
    }


def video_config() -> dict[str, Any]:
    """One frame of 8 pixels → 4 frames of 8 → 4 frames of 16: an image model in a temporal and a spatial level."""
    return {
        "sample_size": 8,
        "block_out_channels": ((16, 32), (32, 16, 32), (16, 32)),
        "layers_per_block": ((1, 1), (1, 1, 1), (1, 1)),
        "attention_layers_per_block": ((0, 1), (0, 0, 1), (0, 1)),
        "has_mid_block": (True, False, False),
        "has_attention_ffn": (True, False, False),
        "norm_num_groups": (8, 8, 8),
        "normalize_input": (False, True, True),
        "dropout": (0.0, 0.0, 0.0),
        "micro_conditioning_keys": (("scale",), ("scale",), ("scale",)),
        "micro_conditioning_defaults": ((8.0,), (8.0,), (16.0,)),
        "num_frames": (1, 4, 4),
        "temporal_layers_per_block": (None, (1, 0, 2), (0, 1)),
        "temporal_downsample": (False, True, False),
        "temporal_rotary": (False, True, True),
        "num_attention_heads": 4,
        "attention_norm_num_groups": 16,
        "encoder_hid_dim": TEXT_WIDTH,
        "cross_attention_dim": 24,
        "use_cross_attention_mask": True,
    }


def softmax_attention(query, key, value, mask=None):
    """The formula, in double precision on `(B, N, heads, d)`."""
    query, key, value = (states.double().transpose(1, 2) for states in (query, key, value))
    scores = query @ key.transpose(-1, -2) / query.shape[-1] ** 0.5
    if mask is not None:
        scores = scores.masked_fill(~mask[:, None, None, :], float("-inf"))
    return (scores.softmax(dim=-1) @ value).transpose(1, 2)


def randomize(model: NestedUNetModel, seed: int = 0) -> NestedUNetModel:
    """Give every parameter a value other than zero or one, so that no branch is silent."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))
    return model
