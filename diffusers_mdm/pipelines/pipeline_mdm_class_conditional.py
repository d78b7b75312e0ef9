# SPDX-License-Identifier: Apache-2.0
"""Class-conditional image generation, by class number or name."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch

from diffusers_mdm.models import NestedUNetModel
from diffusers_mdm.pipelines.drawing.class_labels import ClassLabels
from diffusers_mdm.pipelines.drawing.inner_first import denoise_inner_first
from diffusers_mdm.pipelines.drawing.loop import denoise
from diffusers_mdm.pipelines.drawing.request import (
    PUBLISHED_DEFAULTS,
    Guider,
    Request,
    Sample,
    StepCallback,
    read_call,
)
from diffusers_mdm.pipelines.drawing.setup import begin_drawing, scaled_noise, set_timesteps, starting_noise
from diffusers_mdm.pipelines.pipeline_class_base import ClassPipelineBase
from diffusers_mdm.pipelines.pipeline_output import MDMPipelineOutput


class MDMClassConditionalPipeline(ClassPipelineBase):
    """Pipeline for class-conditional image generation, like diffusers' DiT pipeline (Gu et al., section 4: ImageNet).

    The last of the model's class embeddings is the null class ("no class"), which guidance uses as unconditional
    input.

    Args:
        unet: the model, conditioned on classes, or on classes and text.
        scheduler: `MatryoshkaScheduler`, or one of diffusers' schedulers to generate a single level.
        text_encoder: as in `MDMPipeline`; None for a model without text.
        tokenizer: its tokenizer.
        vae: for a model on latents; see `MDMPipeline`.
        id2label: names of the classes by number, synonyms separated by commas, e.g. `{0: "tench, Tinca tinca"}`; saved
            with the pipeline. None if classes have only numbers.
        drawing_defaults: default settings that suit the model; see `MDMPipeline`.
    """

    # As in diffusers' DiT pipeline.
    _published_defaults = {**PUBLISHED_DEFAULTS, "guidance_scale": 4.0}

    def check_inputs(self, request: Request) -> None:
        """Check the arguments of a call; see `MDMPipelineBase.check_inputs`."""
        if self.unet is not None and not self.has_conditions:
            raise ValueError(
                "This model is conditioned on neither texts nor classes; use MDMUnconditionalPipeline to generate "
                "images with it."
            )
        super().check_inputs(request)

    @torch.no_grad()
    def __call__(
        self,
        class_labels: ClassLabels | None = None,
        height: int | None = None,
        width: int | None = None,
        num_inference_steps: int | None = None,
        timesteps: Sequence[int] | None = None,
        guidance_scale: float | Sequence[float] | None = None,
        negative_class_labels: ClassLabels | None = None,
        num_images_per_label: int = 1,
        eta: float = 0.0,
        generator: torch.Generator | list[torch.Generator] | None = None,
        latents: Sample | None = None,
        prompt: str | list[str] | None = None,
        negative_prompt: str | list[str] | None = None,
        prompt_embeds: torch.Tensor | None = None,
        negative_prompt_embeds: torch.Tensor | None = None,
        prompt_attention_mask: torch.Tensor | None = None,
        negative_prompt_attention_mask: torch.Tensor | None = None,
        micro_conditioning: Mapping[str, Any] | None = None,
        guidance_rescale: float = 0.0,
        output_type: str = "pil",
        output_pyramid: bool = False,
        return_dict: bool = True,
        cross_attention_kwargs: dict[str, Any] | None = None,
        callback_on_step_end: StepCallback = None,
        callback_on_step_end_tensor_inputs: Sequence[str] = ("latents",),
        max_sequence_length: int = 128,
        guider: Guider = None,
        guidance_unet: NestedUNetModel | None = None,
        level_agreement: float | Sequence[float] | None = None,
        open_levels_at: float | None = None,
        num_inner_steps: int | Sequence[int] | None = None,
    ) -> MDMPipelineOutput | tuple[Any, ...]:
        """Generate images of classes.

        An image depends only on its own label, noise and generator, not on the batch it is generated in.

        Args:
            class_labels: one label or several: numbers, names out of `labels`, or a tensor of integers `(B,)`.
            height: pixels; with `width` it selects how many levels are generated: the larger one must be the side of a
                level. By default all levels are generated; if only one of the two is given, images are square.
            width: pixels.
            num_inference_steps: number of denoising steps. Default: the pipeline's `drawing_defaults`, otherwise 50.
            timesteps: custom timesteps in decreasing order, in 0 … num_train_timesteps - 1.
            guidance_scale: guidance scale w, one for all levels or one per level, innermost first; 1 or less turns
                guidance off. Default: the pipeline's `drawing_defaults`, otherwise 4.0.
            negative_class_labels: class for the unconditional prediction of guidance: one for all, or one per label;
                the null class by default.
            num_images_per_label: images per label.
            eta: 0 for DDIM to 1 for ancestral sampling.
            generator: one generator, or one per image: the same seed then gives the same image in any batch.
            latents: starting noise N(0, 1): a pyramid, innermost first, or a tensor for a single level.
            prompt: one text or a list of them, for a model that also takes text.
            negative_prompt: prompt for the unconditional prediction of guidance: a text if `prompt` is one, a list if
                it is a list; empty by default.
            prompt_embeds: text features `(B, L, width)` from `encode_prompt`, instead of `prompt`.
            negative_prompt_embeds: the same shape, instead of `negative_prompt`.
            prompt_attention_mask: `(B, L)`, True where `prompt_embeds` has a token; None means everywhere.
            negative_prompt_attention_mask: the same for `negative_prompt_embeds`.
            micro_conditioning: e.g. `{"scale": 256}`; one number, one per image, or two per image (those of the
                unconditional half of the batch first). Missing ones have the model's defaults.
            guidance_rescale: 0 to 1, rescales the standard deviation of each level towards that of the unguided
                prediction (arXiv:2305.08891).
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
            max_sequence_length: longer prompts are truncated, with a warning.
            guider: guidance method; plain guidance by default. A name ("interval", "projected", "zero_star"), a dict
                of a name and settings (`{"name": "interval", "low": -4.0}`), a method of `drawing.guidance`, or one of
                diffusers' guiders, which has its own scale. Each level is guided separately.
            guidance_unet: a weaker model of the same kind, such as an earlier checkpoint, whose prediction is used
                instead of the unconditional one (autoguidance).
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
            TypeError: `prompt` and `negative_prompt` are of different types.
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
