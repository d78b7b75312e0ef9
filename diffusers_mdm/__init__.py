# SPDX-License-Identifier: Apache-2.0
"""Matryoshka Diffusion Models (Gu et al., ICLR 2024) for Hugging Face diffusers."""

import importlib
import sys
from typing import Any

__version__ = "0.1.0"

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

# A program that sets `PARSES_FIRST` parses its command line before anything slow is imported; the package is then
# loaded when one of its names is first used.
if getattr(sys.modules.get("__main__"), "PARSES_FIRST", False):

    def __getattr__(name: str) -> Any:
        if name not in __all__:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        return getattr(importlib.import_module(".public_names", __name__), name)

else:
    from .public_names import *
