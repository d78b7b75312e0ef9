# SPDX-License-Identifier: Apache-2.0
"""The blocks before the loop: encoding texts, setting timesteps, sampling the starting noise of every level."""

from __future__ import annotations

from typing import Any

import torch
from diffusers.modular_pipelines import (
    ComponentSpec,
    ConfigSpec,
    InputParam,
    ModularPipelineBlocks,
    OutputParam,
    PipelineState,
)

from diffusers_mdm.modular import state as shared
from diffusers_mdm.pipelines.drawing.guidance.prediction import is_guided
from diffusers_mdm.pipelines.drawing.request import PUBLISHED_DEFAULTS, check_argument
from diffusers_mdm.pipelines.drawing.setup import copied_scheduler

NUM_COPIES = InputParam("num_images_per_prompt", int, default=1, description="images per prompt")
MAX_LENGTH = InputParam("max_sequence_length", int, default=128, description="longer prompts are truncated")


class MDMTextEncoderStep(ModularPipelineBlocks):
    """Block that encodes prompts and negative prompts, repeated for the images of each prompt."""

    model_name = shared.MODEL_NAME

    @property
    def description(self) -> str:
        """What the block does."""
        return "Encodes the prompts and, with guidance, the negative prompts; needs no other component."

    @property
    def expected_components(self) -> list[ComponentSpec]:
        """Components that the block uses."""
        return [shared.TEXT_ENCODER, shared.TOKENIZER]

    @property
    def expected_configs(self) -> list[ConfigSpec]:
        """Settings of the folder that the block uses."""
        return [shared.DEFAULTS]

    @property
    def inputs(self) -> list[InputParam]:
        """Inputs; texts, or their features."""
        prompt = InputParam("prompt", description="one text or a list of them")
        negative = InputParam("negative_prompt", description="one text, or one for each prompt; empty by default")
        return [prompt, negative, shared.GUIDANCE_SCALE, NUM_COPIES, MAX_LENGTH, *shared.text_inputs(required=False)]

    @property
    def intermediate_outputs(self) -> list[OutputParam]:
        """The features of all images, and whether padding was added to them here."""
        padded = OutputParam("is_padded_here", bool, "padding was added to texts, so that the model must not see it")
        return [*shared.text_outputs(), padded]

    @torch.no_grad()
    def __call__(self, components: Any, state: PipelineState) -> tuple[Any, PipelineState]:
        """Encode the texts."""
        block = self.get_block_state(state)
        pipeline = shared.pipeline_of(components)
        scale = block.guidance_scale
        if scale is None:
            own = pipeline.config.get("drawing_defaults") or {}
            scale = own.get("guidance_scale", PUBLISHED_DEFAULTS["guidance_scale"])
        block.is_padded_here = block.prompt_embeds is None and block.negative_prompt_embeds is None
        (
            block.prompt_embeds,
            block.negative_prompt_embeds,
            block.prompt_attention_mask,
            block.negative_prompt_attention_mask,
        ) = pipeline.encode_prompt(
            block.prompt,
            num_images_per_prompt=check_argument("num_images_per_prompt", block.num_images_per_prompt),
            do_classifier_free_guidance=is_guided(check_argument("guidance_scale", scale)),
            negative_prompt=block.negative_prompt,
            prompt_embeds=block.prompt_embeds,
            negative_prompt_embeds=block.negative_prompt_embeds,
            prompt_attention_mask=block.prompt_attention_mask,
            negative_prompt_attention_mask=block.negative_prompt_attention_mask,
            max_sequence_length=check_argument("max_sequence_length", block.max_sequence_length),
        )
        self.set_block_state(state, block)
        return components, state


class MDMSetTimestepsStep(ModularPipelineBlocks):
    """Block that computes the timesteps."""

    model_name = shared.MODEL_NAME

    @property
    def description(self) -> str:
        """What the block does."""
        return "Computes the timesteps, which all levels share."

    @property
    def expected_components(self) -> list[ComponentSpec]:
        """Components that the block uses."""
        return [shared.SCHEDULER]

    @property
    def expected_configs(self) -> list[ConfigSpec]:
        """Settings of the folder that the block uses."""
        return [shared.DEFAULTS]

    @property
    def inputs(self) -> list[InputParam]:
        """Inputs; the number of steps, or the timesteps themselves."""
        timesteps = InputParam("timesteps", description="custom timesteps in decreasing order")
        return [shared.NUM_STEPS, timesteps]

    @property
    def intermediate_outputs(self) -> list[OutputParam]:
        """The timesteps, in the order of the steps."""
        return [OutputParam("timesteps", torch.Tensor, "timesteps in decreasing order")]

    @torch.no_grad()
    def __call__(self, components: Any, state: PipelineState) -> tuple[Any, PipelineState]:
        """Compute the timesteps."""
        block = self.get_block_state(state)
        num_steps = block.num_inference_steps
        if num_steps is None:
            own = components.config.get("drawing_defaults") or {}
            num_steps = own.get("num_inference_steps", PUBLISHED_DEFAULTS["num_inference_steps"])
        custom, device = check_argument("timesteps", block.timesteps), components._execution_device
        # Another drawing may be using the scheduler.
        scheduler = copied_scheduler(components.scheduler)
        if custom is None:
            scheduler.set_timesteps(check_argument("num_inference_steps", num_steps), device=device)
        else:
            scheduler.set_timesteps(timesteps=custom, device=device)
        block.timesteps = scheduler.timesteps
        self.set_block_state(state, block)
        return components, state


class MDMPrepareNoiseStep(ModularPipelineBlocks):
    """Block that samples the starting noise of every level, or takes given noise."""

    model_name = shared.MODEL_NAME

    @property
    def description(self) -> str:
        """What the block does."""
        return "Samples independent noise for every generated level, innermost first."

    @property
    def expected_components(self) -> list[ComponentSpec]:
        """Components that the block uses; of an autoencoder only the sizes of its latents."""
        return [shared.UNET, shared.SCHEDULER, shared.VAE]

    @property
    def inputs(self) -> list[InputParam]:
        """Inputs; the number of images is that of the features."""
        latents = InputParam("latents", list, description="noise of unit variance for every level, innermost first")
        return [shared.HEIGHT, shared.WIDTH, shared.GENERATOR, latents, *shared.text_inputs()]

    @property
    def intermediate_outputs(self) -> list[OutputParam]:
        """The noise."""
        return [shared.LATENTS]

    @torch.no_grad()
    def __call__(self, components: Any, state: PipelineState) -> tuple[Any, PipelineState]:
        """Check the sizes, and sample the noise."""
        block = self.get_block_state(state)
        pipeline = shared.pipeline_of(components)
        request = shared.checked_request(pipeline, {name: block[name] for name in self.input_names})
        block.latents = pipeline.prepare_latents(
            request.num_images,
            request.height,
            request.width,
            torch.promote_types(components.unet.dtype, torch.float32),
            components._execution_device,
            request.generator,
            request.latents,
        )
        self.set_block_state(state, block)
        return components, state
