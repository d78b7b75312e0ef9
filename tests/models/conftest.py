# SPDX-License-Identifier: Apache-2.0
"""Tiny models and inputs: 8 → 16 → 32 pixels, every kind of block."""

from typing import Any

import pytest
import torch

from diffusers_mdm import NestedUNetModel

TEXT_WIDTH = 12


def two_level_config() -> dict[str, Any]:
    """A picture model with text, micro-conditioning, attention in both levels and a normalised outer level."""
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


def randomize(model: NestedUNetModel, seed: int = 0) -> NestedUNetModel:
    """Give every parameter a value other than zero or one, so that no branch is silent."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))
    return model


@pytest.fixture
def config() -> dict[str, Any]:
    return two_level_config()


@pytest.fixture
def model(config: dict[str, Any]) -> NestedUNetModel:
    return randomize(NestedUNetModel(**config)).eval()


@pytest.fixture
def inputs() -> dict[str, Any]:
    """Three rows inside, two outside; the second row's last tokens are padding."""
    generator = torch.Generator().manual_seed(1)
    mask = torch.ones(3, 5, dtype=torch.bool)
    mask[1, 3:] = False
    states = torch.randn(3, 5, TEXT_WIDTH, generator=generator) * mask[..., None]
    return {
        "sample": [torch.randn(3, 3, 8, 8, generator=generator), torch.randn(2, 3, 16, 16, generator=generator)],
        "timestep": torch.tensor([3, 500, 999]),
        "encoder_hidden_states": states,
        "encoder_attention_mask": mask,
        "added_cond_kwargs": {"scale": torch.tensor([8.0, 5.0, 16.0])},
    }
