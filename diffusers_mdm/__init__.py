# SPDX-License-Identifier: Apache-2.0
"""Matryoshka Diffusion Models (Gu et al., ICLR 2024) for Hugging Face diffusers."""

# diffusers looks the base classes up in the module that `model_index.json` records, which is this one.
from diffusers import DiffusionPipeline, ModelMixin, SchedulerMixin

from .models import LevelConfig, NestedUNetModel, TextConditioning
from .pyramid import Pyramid, build_pyramid, pyramid_noise

__version__ = "0.1.0"

# Saved pipelines name their classes by module: the package root stays valid when code moves.
NestedUNetModel.__module__ = __name__

__all__ = [
    "DiffusionPipeline",
    "LevelConfig",
    "ModelMixin",
    "NestedUNetModel",
    "Pyramid",
    "SchedulerMixin",
    "TextConditioning",
    "build_pyramid",
    "pyramid_noise",
]
