# SPDX-License-Identifier: Apache-2.0
"""The public names of `diffusers_mdm`, registered with diffusers."""

# diffusers looks up these base classes in the module that `model_index.json` records, which is the package root.
from diffusers import DiffusionPipeline, ModelMixin, SchedulerMixin

from .models import InnerLevelCacheConfig, LevelConfig, NestedUNetModel, TextConditioning
from .pipelines import (
    MDMClassConditionalPipeline,
    MDMImg2ImgPipeline,
    MDMInpaintPipeline,
    MDMPipeline,
    MDMPipelineOutput,
    MDMUpscalePipeline,
    MDMVideoPipeline,
    MDMVideoPipelineOutput,
)
from .pyramid import Pyramid, build_pyramid, pyramid_noise
from .registration import PIPELINES, register_with_diffusers
from .schedulers import MatryoshkaScheduler

# Saved pipelines record the module of each class. With the package root as module they still load when code moves.
for _saved in (NestedUNetModel, MatryoshkaScheduler, *PIPELINES):
    _saved.__module__ = __package__
register_with_diffusers()

__all__ = [
    "DiffusionPipeline",
    "InnerLevelCacheConfig",
    "LevelConfig",
    "MDMClassConditionalPipeline",
    "MDMImg2ImgPipeline",
    "MDMInpaintPipeline",
    "MDMPipeline",
    "MDMPipelineOutput",
    "MDMUpscalePipeline",
    "MDMVideoPipeline",
    "MDMVideoPipelineOutput",
    "MatryoshkaScheduler",
    "ModelMixin",
    "NestedUNetModel",
    "Pyramid",
    "SchedulerMixin",
    "TextConditioning",
    "build_pyramid",
    "pyramid_noise",
]
