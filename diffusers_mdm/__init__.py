# SPDX-License-Identifier: Apache-2.0
"""Matryoshka Diffusion Models (Gu et al., ICLR 2024) for Hugging Face diffusers."""

import importlib
import sys
from pathlib import PurePath
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
    "MDMSuperResolutionPipeline",
    "MDMUnconditionalPipeline",
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


def _program_parses_first() -> bool:
    """Return whether the program parses its command line before it needs the package.

    It is a script that sets `PARSES_FIRST`, the installed `diffusers-mdm` (whose script is generated, and so cannot
    set anything), or `python -m diffusers_mdm`.
    """
    words = sys.orig_argv
    module = words[words.index("-m") + 1 :][:1] if "-m" in words else []
    return (
        getattr(sys.modules.get("__main__"), "PARSES_FIRST", False)
        or PurePath(getattr(sys, "argv", [""])[0]).stem == "diffusers-mdm"
        or module == [__name__]
    )


# Then nothing slow is imported until one of the package's names is first used.
if _program_parses_first():

    def __getattr__(name: str) -> Any:
        if name not in __all__:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        return getattr(importlib.import_module(".public_names", __name__), name)

else:
    from .public_names import *
