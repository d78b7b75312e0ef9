# SPDX-License-Identifier: Apache-2.0
"""Imports of the public names, which `diffusers_mdm.__all__` lists, and their registration with diffusers."""

import gc as _gc

# Garbage collection would find nothing among the objects that torch, transformers and diffusers create when they are
# imported, and would take a fifth of the time.
_collects = _gc.isenabled()
_gc.disable()
try:
    # diffusers looks up these base classes in the module that `model_index.json` records, which is the package root.
    from diffusers import DiffusionPipeline, ModelMixin, SchedulerMixin

    from .models import InnerLevelCacheConfig, LevelConfig, NestedUNetModel, TextConditioning
    from .pipelines import (
        MDMClassConditionalPipeline,
        MDMImg2ImgPipeline,
        MDMInpaintPipeline,
        MDMPipeline,
        MDMPipelineOutput,
        MDMSuperResolutionPipeline,
        MDMUnconditionalPipeline,
        MDMUpscalePipeline,
        MDMVideoPipeline,
        MDMVideoPipelineOutput,
    )
    from .pyramid import Pyramid, build_pyramid, pyramid_noise
    from .registration import PIPELINES as _PIPELINES
    from .registration import register_with_diffusers as _register_with_diffusers
    from .schedulers import MatryoshkaScheduler
finally:
    if _collects:
        _gc.enable()

# Saved pipelines record the module of each class. With the package root as module they still load when code moves.
for _saved in (NestedUNetModel, MatryoshkaScheduler, *_PIPELINES):
    _saved.__module__ = __package__
_register_with_diffusers()
