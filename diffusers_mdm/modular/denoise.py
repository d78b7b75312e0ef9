# SPDX-License-Identifier: Apache-2.0
"""The loop: in every step a guided prediction of all levels, then one reverse step of each."""

from __future__ import annotations

from typing import Any

import torch
from diffusers.modular_pipelines import (
    BlockState,
    ComponentSpec,
    ConfigSpec,
    InputParam,
    LoopSequentialPipelineBlocks,
    ModularPipelineBlocks,
    OutputParam,
    PipelineState,
)

from diffusers_mdm.modular import state as shared
from diffusers_mdm.pipelines.drawing.conditioning import Conditioning
from diffusers_mdm.pipelines.drawing.guidance.prediction import needs_negatives, predict
from diffusers_mdm.pipelines.drawing.loop import check_predictions, largest_magnitudes, step_times
from diffusers_mdm.pipelines.drawing.request import Request
from diffusers_mdm.pipelines.drawing.setup import Drawing, begin_drawing, set_timesteps, step_arguments


class MDMLoopDenoiser(ModularPipelineBlocks):
    """Block in the loop that predicts all levels; its result is `block_state.prediction`."""

    model_name = shared.MODEL_NAME

    @property
    def description(self) -> str:
        """What the block does."""
        return "Predicts all levels, with guidance if the scale of any level is above 1."

    @property
    def expected_components(self) -> list[ComponentSpec]:
        """Components that the block uses."""
        return [shared.UNET, shared.SCHEDULER]

    @property
    def inputs(self) -> list[InputParam]:
        """Inputs; those of `MDMPipeline` with the same names."""
        return [
            *shared.text_inputs(),
            shared.GUIDANCE_SCALE,
            InputParam("guidance_rescale", float, description="0 to 1, see `MDMPipeline`"),
            InputParam("guider", description="guidance method, see `MDMPipeline`; plain guidance by default"),
            InputParam("guidance_unet", description="a weaker model for autoguidance"),
            InputParam("micro_conditioning", dict, description='e.g. `{"scale": 256}`'),
            InputParam("cross_attention_kwargs", dict, description='e.g. `{"scale": 0.5}`, the strength of a LoRA'),
            InputParam("is_padded_here", bool, description="whether the padding of the features was added to texts"),
        ]

    @torch.no_grad()
    def __call__(self, components: Any, block_state: BlockState, i: int, t: torch.Tensor) -> tuple[Any, BlockState]:
        """Predict at step `i` and timestep `t`."""
        scaled = block_state.drawing.scheduler.scale_model_input(block_state.latents, t)
        block_state.drawing.position = i
        block_state.prediction = predict(block_state.drawing, scaled, t, i)
        return components, block_state


class MDMLoopSchedulerStep(ModularPipelineBlocks):
    """Block in the loop that takes one reverse step of every level, from `block_state.prediction`."""

    model_name = shared.MODEL_NAME

    @property
    def description(self) -> str:
        """What the block does."""
        return "Takes one reverse step of every level."

    @property
    def expected_components(self) -> list[ComponentSpec]:
        """Components that the block uses."""
        return [shared.SCHEDULER]

    @property
    def inputs(self) -> list[InputParam]:
        """Inputs; those of `MDMPipeline` with the same names."""
        return [
            InputParam("latents", list, required=True, description="samples of every level, innermost first"),
            InputParam("eta", float, description="0 for DDIM (default) to 1 for ancestral sampling"),
            InputParam("level_agreement", description="0 to 1, see `MDMPipeline`"),
            shared.GENERATOR,
        ]

    @property
    def intermediate_outputs(self) -> list[OutputParam]:
        """The samples after the step."""
        return [shared.LATENTS]

    @torch.no_grad()
    def __call__(self, components: Any, block_state: BlockState, i: int, t: torch.Tensor) -> tuple[Any, BlockState]:
        """Take step `i`."""
        drawing = block_state.drawing
        block_state.latents = drawing.scheduler.step(
            block_state.prediction, block_state.times[i], block_state.latents, **step_arguments(drawing)
        ).prev_sample
        return components, block_state


class MDMDenoiseStep(LoopSequentialPipelineBlocks):
    """The loop over the timesteps.

    Blocks that are put into the loop find the samples in `block_state.latents`, the prediction of the step in
    `block_state.prediction`, and what the steps share in `block_state.drawing`.
    """

    model_name = shared.MODEL_NAME
    block_classes = [MDMLoopDenoiser, MDMLoopSchedulerStep]
    block_names = ["denoiser", "scheduler_step"]

    @property
    def description(self) -> str:
        """What the loop does."""
        return "Denoises all levels together, step by step."

    @property
    def loop_expected_configs(self) -> list[ConfigSpec]:
        """Settings of the folder that the loop uses."""
        return [shared.DEFAULTS]

    @property
    def loop_inputs(self) -> list[InputParam]:
        """Inputs of the loop itself."""
        timesteps = InputParam("timesteps", torch.Tensor, required=True, description="timesteps in decreasing order")
        return [timesteps, shared.NUM_STEPS]

    @torch.no_grad()
    def __call__(self, components: Any, state: PipelineState) -> tuple[Any, PipelineState]:
        """Run the blocks of the loop at every timestep."""
        block = self.get_block_state(state)
        pipeline = shared.pipeline_of(components)
        given = {name: block[name] for name in self.input_names if name not in ("timesteps", "is_padded_here")}
        request = shared.checked_request(pipeline, given)
        magnitudes = []
        with begin_drawing(pipeline, request) as drawing:
            condition(drawing, request, is_padded_here=bool(block["is_padded_here"]))
            use_timesteps(drawing, block.timesteps)
            block.drawing, block.times = drawing, step_times(drawing)
            with self.progress_bar(total=len(block.timesteps)) as progress_bar:
                for index, timestep in enumerate(block.timesteps):
                    components, block = self.loop_step(components, block, i=index, t=timestep)
                    magnitudes.append(largest_magnitudes(block.prediction))
                    progress_bar.update()
        check_predictions(magnitudes, [int(time) for time in block.times])
        self.set_block_state(state, block)
        return components, state


def use_timesteps(drawing: Drawing, timesteps: torch.Tensor) -> None:
    """Set the timesteps of a drawing's scheduler, which is not always the one that they were computed with.

    Args:
        drawing: the drawing, whose request has the number of steps.
        timesteps: t in decreasing order.
    """
    set_timesteps(drawing)
    if not torch.equal(drawing.timesteps, timesteps):
        drawing.scheduler.set_timesteps(timesteps=timesteps.tolist(), device=drawing.device)
        drawing.timesteps, drawing.positions = drawing.scheduler.timesteps, range(len(timesteps))


def condition(drawing: Drawing, request: Request, *, is_padded_here: bool) -> None:
    """Set the conditions of a drawing to encoded texts.

    Args:
        drawing: receives the conditions.
        request: has the features and masks of all images.
        is_padded_here: whether their padding was added to texts, as opposed to given features.

    Raises:
        ValueError: guidance needs the features of negative prompts, but there are none.
    """
    if needs_negatives(request) and request.negative_prompt_embeds is None:
        raise ValueError(
            f"`guidance_scale` is {request.guidance_scale}, but there are no `negative_prompt_embeds`, which guidance "
            f"needs: run the block that encodes texts with the same `guidance_scale`, or pass them, or pass "
            f"`guidance_scale=1`."
        )
    drawing.own_columns = is_padded_here and not drawing.pipeline.unet.config.use_cross_attention_mask
    text = (request.prompt_embeds, request.negative_prompt_embeds)
    masks = (request.prompt_attention_mask, request.negative_prompt_attention_mask)
    drawing.condition_on(Conditioning(*text, *masks))
