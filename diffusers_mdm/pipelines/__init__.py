# SPDX-License-Identifier: Apache-2.0
"""The pipelines, one module per task."""

from diffusers_mdm.pipelines.pipeline_mdm import MDMPipeline
from diffusers_mdm.pipelines.pipeline_mdm_class_conditional import MDMClassConditionalPipeline
from diffusers_mdm.pipelines.pipeline_mdm_img2img import MDMImg2ImgPipeline
from diffusers_mdm.pipelines.pipeline_mdm_inpaint import MDMInpaintPipeline
from diffusers_mdm.pipelines.pipeline_mdm_super_resolution import MDMSuperResolutionPipeline
from diffusers_mdm.pipelines.pipeline_mdm_unconditional import MDMUnconditionalPipeline
from diffusers_mdm.pipelines.pipeline_mdm_upscale import MDMUpscalePipeline
from diffusers_mdm.pipelines.pipeline_mdm_video import MDMVideoPipeline
from diffusers_mdm.pipelines.pipeline_output import MDMPipelineOutput, MDMVideoPipelineOutput

__all__ = [
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
]
