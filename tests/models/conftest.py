# SPDX-License-Identifier: Apache-2.0
"""Tiny models and inputs: 8 → 16 → 32 pixels, every kind of block."""

from typing import Any

import pytest
import torch

from diffusers_mdm import NestedUNetModel
from tests.models.tiny_models import TEXT_WIDTH, randomize, two_level_config, video_config


@pytest.fixture
def config() -> dict[str, Any]:
    return two_level_config()


@pytest.fixture
def model(config: dict[str, Any]) -> NestedUNetModel:
    return randomize(NestedUNetModel(**config)).eval()


@pytest.fixture
def video_model() -> NestedUNetModel:
    return randomize(NestedUNetModel(**video_config())).eval()


@pytest.fixture
def video_inputs() -> dict[str, Any]:
    """Three rows of images inside, of which two are clips, of which one has all pixels."""
    generator = torch.Generator().manual_seed(2)
    mask = torch.ones(3, 5, dtype=torch.bool)
    mask[1, 3:] = False
    shapes = ((3, 3, 1, 8, 8), (2, 3, 4, 8, 8), (1, 3, 4, 16, 16))
    return {
        "sample": [torch.randn(shape, generator=generator) for shape in shapes],
        "timestep": torch.tensor([3, 500, 999]),
        "encoder_hidden_states": torch.randn(3, 5, TEXT_WIDTH, generator=generator) * mask[..., None],
        "encoder_attention_mask": mask,
        "added_cond_kwargs": {"scale": torch.tensor([8.0, 5.0, 16.0])},
    }


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
