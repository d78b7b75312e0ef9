# SPDX-License-Identifier: Apache-2.0
"""Text to image with a Matryoshka diffusion model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from diffusers.schedulers import KarrasDiffusionSchedulers
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from diffusers_mdm.models import NestedUNetModel
from diffusers_mdm.pipelines.drawing.inner_first import denoise_inner_first
from diffusers_mdm.pipelines.drawing.latent_space import Autoencoder
from diffusers_mdm.pipelines.drawing.loop import denoise
from diffusers_mdm.pipelines.drawing.request import Guider, Sample, StepCallback, read_call
from diffusers_mdm.pipelines.drawing.setup import begin_drawing, scaled_noise, set_timesteps, starting_noise
from diffusers_mdm.pipelines.pipeline_base import MDMPipelineBase
from diffusers_mdm.pipelines.pipeline_output import MDMPipelineOutput
from diffusers_mdm.schedulers import MatryoshkaScheduler


class MDMPipeline(MDMPipelineBase):
    """Pipeline for text-to-image generation, at every resolution of the model at once (Gu et al., arXiv:2310.15111).

    Args:
        text_encoder: any transformers model with a `last_hidden_state` (T5 for the published models).
        tokenizer: its tokenizer.
        unet: the model. `height` selects how many of its levels are generated.
        scheduler: `MatryoshkaScheduler`, or one of diffusers' schedulers to generate a single level.
        vae: for a model on latents, the autoencoder of these latents (use a scheduler with `clip_sample=False`). All
            sizes in pixels are then those of decoded images; `latents`, the samples in callbacks and
            `output_type="latent"` are latents of unit variance. None for a model on pixels.
        drawing_defaults: default settings that suit the model, saved with it: any of `num_inference_steps`,
            `guidance_scale`, `num_resampling_steps` and others; if `MDMUpscalePipeline` needs different ones, the same
            and `eta` with the prefix `upscale_`. Also `aspect_ratio_buckets`, further sizes `[height, width]` in
            pixels that images of the outermost level can have, and those of inner levels in proportion.

    A component can be None if it is not used: with prompt embeddings no text encoder is needed, and `encode_prompt`
    needs no other component.
    """

    def __init__(
        self,
        text_encoder: PreTrainedModel | None,
        tokenizer: PreTrainedTokenizerBase | None,
        unet: NestedUNetModel | None,
        scheduler: MatryoshkaScheduler | KarrasDiffusionSchedulers | None,
        vae: Autoencoder | None = None,
        drawing_defaults: dict[str, Any] | None = None,
    ) -> None:
        parts = {
            "text_encoder": text_encoder,
            "tokenizer": tokenizer,
            "unet": unet,
            "scheduler": scheduler,
            "vae": vae,
        }
        super().__init__(drawing_defaults, **parts)

    @torch.no_grad()
    def __call__(
        self,
        prompt: str | list[str] | None = None,
        height: int | None = None,
        width: int | None = None,
        num_inference_steps: int | None = None,
        timesteps: Sequence[int] | None = None,
        guidance_scale: float | Sequence[float] | None = None,
        negative_prompt: str | list[str] | None = None,
        num_images_per_prompt: int = 1,
        eta: float = 0.0,
        generator: torch.Generator | list[torch.Generator] | None = None,
        latents: Sample | None = None,
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
        """Generate images for prompts.

        An image depends only on its own prompt, noise and generator, not on the batch it is generated in. (In
        `prompt_embeds`, padding is up to the caller: a model that does not mask padding in cross-attention, like the
        published ones, attends to it.)

        Args:
            prompt: one text or a list of them.
            height: pixels; with `width` it selects how many levels are generated: the larger one must be the side of a
                level (`unet.sample_sizes`). By default all levels are generated; if only one of the two is given,
                images are square.
            width: pixels.
            num_inference_steps: number of denoising steps. Default: the pipeline's `drawing_defaults`, otherwise 50.
            timesteps: custom timesteps in decreasing order, in 0 … num_train_timesteps - 1.
            guidance_scale: guidance scale w, one for all levels or one per level, innermost first; 1 or less turns
                guidance off. Default: the pipeline's `drawing_defaults`, otherwise 7.5.
            negative_prompt: prompt for the unconditional prediction of guidance: a text if `prompt` is one, a list if
                it is a list; empty by default.
            num_images_per_prompt: images per prompt.
            eta: 0 for DDIM to 1 for ancestral sampling.
            generator: one generator, or one per image: the same seed then gives the same image in any batch.
            latents: starting noise N(0, 1): a pyramid, innermost first, or a tensor for a single level.
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
