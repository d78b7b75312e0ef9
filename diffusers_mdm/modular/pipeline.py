# SPDX-License-Identifier: Apache-2.0
"""All blocks of text to image in their order, and the modular pipeline that runs them."""

from __future__ import annotations

from typing import Any

import torch
from diffusers import ModularPipeline
from diffusers.modular_pipelines import (
    ComponentSpec,
    InputParam,
    ModularPipelineBlocks,
    OutputParam,
    PipelineState,
    SequentialPipelineBlocks,
)

from diffusers_mdm.loaders import MDMLoraLoaderMixin
from diffusers_mdm.modular import state as shared
from diffusers_mdm.modular.before_denoise import MDMPrepareNoiseStep, MDMSetTimestepsStep, MDMTextEncoderStep
from diffusers_mdm.modular.denoise import MDMDenoiseStep
from diffusers_mdm.pipelines.drawing.input_checks import check_shows_images
from diffusers_mdm.pipelines.drawing.loop import check_finite, images
from diffusers_mdm.pipelines.drawing.request import check_argument
from diffusers_mdm.pyramid import as_pyramid

MODEL_NAME = shared.MODEL_NAME


class MDMDecodeStep(ModularPipelineBlocks):
    """Block that converts the last samples to images."""

    model_name = MODEL_NAME

    @property
    def description(self) -> str:
        """What the block does."""
        return "Converts the last samples of every level to images; samples of latents are decoded first."

    @property
    def expected_components(self) -> list[ComponentSpec]:
        """Components that the block uses."""
        return [shared.VAE]

    @property
    def inputs(self) -> list[InputParam]:
        """Inputs."""
        output_type = InputParam("output_type", str, default="pil", description='"pil", "np", "pt" or "latent"')
        return [InputParam("latents", list, required=True, description="the last samples"), output_type]

    @property
    def intermediate_outputs(self) -> list[OutputParam]:
        """The images."""
        images = OutputParam("images", list, "images of the outermost level")
        return [images, OutputParam("pyramid", list, "images of every level, innermost first")]

    @torch.no_grad()
    def __call__(self, components: Any, state: PipelineState) -> tuple[Any, PipelineState]:
        """Convert the samples."""
        block = self.get_block_state(state)
        levels = as_pyramid(block.latents)[0]
        check_finite(levels, "The last samples hold")
        pipeline, output_type = shared.pipeline_of(components), check_argument("output_type", block.output_type)
        if pipeline.vae is None:
            check_shows_images(levels[0].shape[1], output_type)
        block.pyramid = images(pipeline, levels, output_type)
        block.images = block.pyramid[-1]
        self.set_block_state(state, block)
        return components, state


class MDMBlocks(SequentialPipelineBlocks):
    """Text to image: encode texts, set timesteps, prepare noise, denoise, decode."""

    model_name = MODEL_NAME
    block_classes = [MDMTextEncoderStep, MDMSetTimestepsStep, MDMPrepareNoiseStep, MDMDenoiseStep, MDMDecodeStep]
    block_names = ["text_encoder", "set_timesteps", "prepare_noise", "denoise", "decode"]

    @property
    def description(self) -> str:
        """What the blocks do together."""
        return "Text to image at every resolution of a Matryoshka diffusion model at once."


class MDMModularPipeline(ModularPipeline, MDMLoraLoaderMixin):
    """Modular pipeline for text to image, which gives the same images as `MDMPipeline`.

    It is made by `ModularPipeline.from_pretrained(folder)` from a folder of an `MDMPipeline`, or by
    `MDMBlocks().init_pipeline(folder)`; then `load_components(dtype=...)` loads the weights.
    """

    default_blocks_name = "MDMBlocks"

    def __init__(self, *args: Any, config_dict: dict[str, Any] | None = None, **kwargs: Any) -> None:
        if config_dict is not None:
            # A component that the folder says is None would be looked for in vain.
            config_dict = {name: entry for name, entry in config_dict.items() if entry not in ([None, None], None)}
        super().__init__(*args, config_dict=config_dict, **kwargs)
