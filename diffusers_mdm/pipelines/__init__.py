# SPDX-License-Identifier: Apache-2.0
"""Pipelines: from a prompt to pictures."""

from diffusers_mdm.pipelines.pipeline_mdm import MDMPipeline
from diffusers_mdm.pipelines.pipeline_output import MDMPipelineOutput

__all__ = ["MDMPipeline", "MDMPipelineOutput"]
