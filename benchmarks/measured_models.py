# SPDX-License-Identifier: Apache-2.0
"""The models whose speed is measured, with random weights that are made on the device itself, and their inputs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from measuring import MODELS, ROOT, build_model

from diffusers_mdm import LevelConfig, NestedUNetModel
from diffusers_mdm.training.recipe.loading import load_recipe

PUBLISHED_SIZES = ("64", "256", "1024")
NAMES = (*MODELS, *PUBLISHED_SIZES)
TEXT_LENGTH = 32


def build(name: str, device: str = "cpu") -> NestedUNetModel:
    """A model by its name, in float32: "emoji" and "middle" of `measuring`, or "64", "256", "1024" for the sizes of
    the published models, from the recipes cc12m_64 ….
    """
    if name in MODELS:
        with torch.device(device):
            return randomize(build_model(name))
    recipe = load_recipe(ROOT / "training" / "recipes" / f"cc12m_{name}.yaml")
    with torch.device(device):
        model = NestedUNetModel(**recipe.model, **LevelConfig.columns_from(recipe.level_configs))
    return randomize(model)


@torch.no_grad()
def randomize(model: NestedUNetModel) -> NestedUNetModel:
    """Fill all weights with random numbers that keep activations of about unit size.

    New models predict zero, and zeros are faster to multiply on some processors.
    """
    for name, parameter in model.named_parameters():
        if parameter.ndim > 1:
            parameter.normal_(std=(parameter.numel() / parameter.shape[0]) ** -0.5)
        else:
            parameter.normal_(mean=float("norm" in name and name.endswith("weight")), std=0.1)
    return model


def text_width(model: NestedUNetModel) -> int:
    """Width of the text features that the model takes."""
    return model.config.encoder_hid_dim or model.config.cross_attention_dim


def inputs_of(model: NestedUNetModel, batch: int, device: str, dtype: torch.dtype = torch.float32) -> dict[str, Any]:
    """Random arguments for a model: `batch` samples of every level, timesteps and text features."""
    place = {"device": device, "dtype": dtype}
    return {
        "sample": [torch.randn(batch, 3, side, side, **place) for side in model.sample_sizes],
        "timestep": torch.randint(0, 1000, (batch,), device=device),
        "encoder_hidden_states": torch.randn(batch, TEXT_LENGTH, text_width(model), **place),
    }


def laid_out(levels: Sequence[torch.Tensor], memory_format: torch.memory_format) -> list[torch.Tensor]:
    """The levels in the memory format in which the model runs."""
    return [level.contiguous(memory_format=memory_format) for level in levels]
