# SPDX-License-Identifier: Apache-2.0
"""Unconditional image generation: images like those of the training data, without a prompt or class."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from diffusers.schedulers import KarrasDiffusionSchedulers

from diffusers_mdm.models import NestedUNetModel
from diffusers_mdm.pipelines.drawing import input_checks as checks
from diffusers_mdm.pipelines.drawing.conditioning import Conditioning
from diffusers_mdm.pipelines.drawing.inner_first import denoise_inner_first
from diffusers_mdm.pipelines.drawing.latent_space import Autoencoder
from diffusers_mdm.pipelines.drawing.loop import denoise
from diffusers_mdm.pipelines.drawing.request import Request, Sample, StepCallback, read_call
from diffusers_mdm.pipelines.drawing.setup import (
    Drawing,
    begin_drawing,
    scaled_noise,
    set_timesteps,
    starting_noise,
)
from diffusers_mdm.pipelines.pipeline_base import MDMPipelineBase
from diffusers_mdm.pipelines.pipeline_output import MDMPipelineOutput
from diffusers_mdm.schedulers import MatryoshkaScheduler


class MDMUnconditionalPipeline(MDMPipelineBase):
    """Pipeline for unconditional image generation, at every resolution at once, like diffusers' DDPM pipeline.

    Args:
        unet: a model that is conditioned on neither text nor classes.
        scheduler: `MatryoshkaScheduler`, or one of diffusers' schedulers to generate a single level.
        vae: for a model on latents; see `MDMPipeline`.
        drawing_defaults: default settings that suit the model; see `MDMPipeline`. Those of guidance have no effect.
    """

    model_cpu_offload_seq = "unet->vae"
    _callback_tensor_inputs = ["latents", "pred_original_sample"]

    def __init__(
        self,
        unet: NestedUNetModel | None,
        scheduler: MatryoshkaScheduler | KarrasDiffusionSchedulers | None,
        vae: Autoencoder | None = None,
        drawing_defaults: dict[str, Any] | None = None,
    ) -> None:
        super().__init__(drawing_defaults, unet=unet, scheduler=scheduler, vae=vae)

    def check_inputs(self, request: Request) -> None:
        """Check the arguments of a call; see `MDMPipelineBase.check_inputs`."""
        request.guidance_scale = 1.0  # a folder's default is for models with a prompt or class
        super().check_inputs(request)

    def count_conditions(self, request: Request) -> dict[str, int]:
        """Check that the model has no conditions; there are none to count."""
        config = self.unet.config
        if checks.has_conditions(config):
            what, other = (
                ("classes", "MDMClassConditionalPipeline")
                if config.num_class_embeds is not None
                else ("text", "MDMPipeline")
            )
            raise ValueError(
                f"This model is conditioned on {what}, which this pipeline does not take; use {other}, where guidance "
                "is turned off with `guidance_scale=1`."
            )
        return {}

    def encode_prompt(self, *args: Any, **kwargs: Any) -> Any:
        """Refuse to encode a prompt.

        Raises:
            ValueError: always; an unconditional model takes no text.
        """
        raise ValueError("An unconditional model takes no text, so there is nothing to encode; use MDMPipeline.")

    def encode_conditions(self, drawing: Drawing) -> None:
        """Set up a drawing without conditions."""
        drawing.condition_on(Conditioning())

    @torch.no_grad()
    def __call__(
        self,
        batch_size: int = 1,
        height: int | None = None,
        width: int | None = None,
        num_inference_steps: int | None = None,
        timesteps: Sequence[int] | None = None,
        eta: float = 0.0,
        generator: torch.Generator | list[torch.Generator] | None = None,
        latents: Sample | None = None,
        micro_conditioning: Mapping[str, Any] | None = None,
        output_type: str = "pil",
        output_pyramid: bool = False,
        return_dict: bool = True,
        cross_attention_kwargs: dict[str, Any] | None = None,
        callback_on_step_end: StepCallback = None,
        callback_on_step_end_tensor_inputs: Sequence[str] = ("latents",),
        level_agreement: float | Sequence[float] | None = None,
        open_levels_at: float | None = None,
        num_inner_steps: int | Sequence[int] | None = None,
    ) -> MDMPipelineOutput | tuple[Any, ...]:
        """Generate images.

        An image depends only on its own noise and generator, not on the batch it is generated in.

        Args:
            batch_size: number of images.
            height: pixels; with `width` it selects how many levels are generated: the larger one must be the side of a
                level. By default all levels are generated; if only one of the two is given, images are square.
            width: pixels.
            num_inference_steps: number of denoising steps. Default: the pipeline's `drawing_defaults`, otherwise 50.
            timesteps: custom timesteps in decreasing order, in 0 … num_train_timesteps - 1.
            eta: 0 for DDIM to 1 for ancestral sampling.
            generator: one generator, or one per image: the same seed then gives the same image in any batch.
            latents: starting noise N(0, 1): a pyramid, innermost first, or a tensor for a single level.
            micro_conditioning: e.g. `{"scale": 256}`; one number, or one per image. Missing ones have the model's
                defaults.
            output_type: "pil", "np" (`(B, H, W, C)` in [0, 1]), "pt" (`(B, C, H, W)` in [0, 1]) or "latent" (the last
                sample, not clipped).
            output_pyramid: also return the images of the inner levels.
            return_dict: False returns a tuple `(images,)`, or `(images, pyramid)` with `output_pyramid`.
            cross_attention_kwargs: e.g. `{"scale": 0.5}`, the strength of a LoRA.
            callback_on_step_end: called after each step as `(pipeline, step, timestep, tensors)`; tensors that it
                returns replace those of the pipeline. Set `pipeline._interrupt = True` to stop.
            callback_on_step_end_tensor_inputs: which tensors it receives, from `_callback_tensor_inputs`;
                "pred_original_sample" is a preview of the finished pyramid in [-1, 1] (None with schedulers of
                diffusers that do not return it).
            level_agreement: 0 to 1, the fraction by which the averages of each predicted level are moved to the level
                inside it; one for all levels but the innermost, or one per level. Default: the pipeline's
                `drawing_defaults`, otherwise 0.
            open_levels_at: log SNR at which an outer level starts to run; with more noise, only the levels inside it
                run. At -5 there is no visible difference. Default: the pipeline's `drawing_defaults`, otherwise all
                levels always run.
            num_inner_steps: number of steps in which the innermost level is generated alone, before the others around
                it in `num_inference_steps`; a list generates one level after another, innermost first. Callbacks are
                called for these drawings one after another. Default: the pipeline's `drawing_defaults`, otherwise all
                levels are generated together.

        Raises:
            ValueError: see `check_inputs`.
        """
        request = read_call(locals())
        self.check_inputs(request)
        with begin_drawing(self, request) as drawing:
            self.encode_conditions(drawing)
            noise = starting_noise(drawing)
            if request.num_inner_steps:
                return self.finish_drawing(drawing, denoise_inner_first(drawing, noise))
            set_timesteps(drawing)
            return self.finish_drawing(drawing, denoise(drawing, scaled_noise(drawing.scheduler, noise)))
