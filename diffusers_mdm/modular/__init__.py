# SPDX-License-Identifier: Apache-2.0
"""Blocks for diffusers' modular pipelines, with which people compose a drawing themselves.

Importing this package registers them with diffusers: afterwards `ModularPipeline.from_pretrained` loads a folder of an
`MDMPipeline`, too. `import diffusers_mdm` alone does not import them.
"""

import diffusers
from diffusers.modular_pipelines.modular_pipeline import MODULAR_PIPELINE_MAPPING

from diffusers_mdm.modular.before_denoise import MDMPrepareNoiseStep, MDMSetTimestepsStep, MDMTextEncoderStep
from diffusers_mdm.modular.denoise import MDMDenoiseStep, MDMLoopDenoiser, MDMLoopSchedulerStep
from diffusers_mdm.modular.pipeline import MODEL_NAME, MDMBlocks, MDMDecodeStep, MDMModularPipeline

__all__ = [
    "MDMBlocks",
    "MDMDecodeStep",
    "MDMDenoiseStep",
    "MDMLoopDenoiser",
    "MDMLoopSchedulerStep",
    "MDMModularPipeline",
    "MDMPrepareNoiseStep",
    "MDMSetTimestepsStep",
    "MDMTextEncoderStep",
]

# diffusers looks up the classes of a saved pipeline, and of an architecture, among its own.
for _registered in (MDMBlocks, MDMModularPipeline):
    setattr(diffusers, _registered.__name__, _registered)
MODULAR_PIPELINE_MAPPING[MODEL_NAME] = lambda config_dict=None: MDMModularPipeline.__name__
