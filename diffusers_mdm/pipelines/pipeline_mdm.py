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
    """Draw pictures from prompts, at every resolution of the model at once (Gu et al., arXiv:2310.15111).

    Args:
        text_encoder: any transformers model with a `last_hidden_state` (T5 for the published models).
        tokenizer: its tokenizer.
        unet: the model. `height` chooses how many of its levels are drawn.
        scheduler: `MatryoshkaScheduler`, or one of diffusers' where a single level is drawn.
        vae: for a model of latents, the autoencoder whose pooled latents the levels draw (use a scheduler with
            `clip_sample=False`). All sizes in pixels are then those of decoded pictures; the noise and samples of
            `latents`, callbacks and `output_type="latent"` are latents of unit variance. None for a model of pixels.
        drawing_defaults: settings that suit the model, saved with it, for calls that leave them open: any of
            `num_inference_steps`, `guidance_scale` and `num_resampling_steps`, and, where `MDMUpscalePipeline` needs
            others, the same and `eta` with `upscale_` before them.

    Each component may be None as nothing asks for it: with prompt embeddings no text encoder is needed, and
    `encode_prompt` needs nothing else.
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
        """Draw pictures for prompts.

        A picture depends on its own prompt, noise and generator, not on the batch it is drawn in. (Where
        `prompt_embeds` are given, the pads among them are the caller's choice: a model that does not mask pads in its
        cross-attention, as the published ones, sees them.)

        Args:
            prompt: one text or a list of them.
            height: pixels; with `width` it chooses how many levels are drawn: the larger one has to be a level's side
                (`unet.sample_sizes`). By default all levels are drawn; one of the two alone means a square.
            width: pixels.
            num_inference_steps: number of denoising steps. By default what the pipeline's folder says suits its model
                (`drawing_defaults`), else 50.
            timesteps: the time steps themselves, descending, in 0 … num_train_timesteps - 1.
            guidance_scale: w of the guidance, one for all levels or one a level, innermost first; 1 or less turns it
                off. By default what the pipeline's folder says, else 7.5.
            negative_prompt: what guidance pushes away from: one text for a text, a list for a list; empty by default.
            num_images_per_prompt: pictures of each prompt.
            eta: 0 for DDIM to 1 for ancestral sampling.
            generator: one, or one a picture: the same seed then gives the same picture in any batch.
            latents: starting noise N(0, 1): a pyramid, innermost first, or a tensor where one level is drawn.
            prompt_embeds: `(B, L, width)` from `encode_prompt`, in place of `prompt`.
            negative_prompt_embeds: the same shape, in place of `negative_prompt`.
            prompt_attention_mask: `(B, L)`, True where `prompt_embeds` has a token; None says everywhere.
            negative_prompt_attention_mask: the same for `negative_prompt_embeds`.
            micro_conditioning: e.g. `{"scale": 256}`; one number, one a picture, or two a picture (those of the
                unconditional half of the batch first). What is missing takes the model's own value.
            guidance_rescale: 0 to 1, brings each level's spread back to that of the unguided prediction
                (arXiv:2305.08891).
            output_type: "pil", "np" (`(B, H, W, C)` in [0, 1]), "pt" (`(B, C, H, W)` in [0, 1]) or "latent" (the last
                sample, not clipped).
            output_pyramid: also return the pictures of the levels inside.
            return_dict: False returns a tuple `(images,)`, or `(images, pyramid)` with `output_pyramid`.
            cross_attention_kwargs: e.g. `{"scale": 0.5}`, the strength of a LoRA.
            callback_on_step_end: called after each step as `(pipeline, step, timestep, tensors)`; the tensors it
                returns replace those of the pipeline. Set `pipeline._interrupt = True` to stop.
            callback_on_step_end_tensor_inputs: which tensors it gets, of `_callback_tensor_inputs`;
                "pred_original_sample" is a preview of the finished pyramid in [-1, 1] (None with schedulers
                of diffusers that do not tell).
            max_sequence_length: longer prompts are cut, with a warning.
            guider: how to guide, plain guidance by default: a name ("interval", "projected", "zero_star"), a dict of a
                name and settings (`{"name": "interval", "low": -4.0}`), a method of `drawing.guidance`, or one of
                diffusers' guiders, which has its own weight; each level is guided by itself.
            guidance_unet: a weaker model of the same kind, such as an earlier checkpoint, away from which guidance
                pushes in place of the prediction without the prompt (autoguidance).
            level_agreement: 0 to 1, by how much the averages of each predicted level move to the level inside it; one
                for all levels but the innermost, or one each. By default what the pipeline's folder says, else 0.
            open_levels_at: log SNR from which on an outer level runs; while it has more noise the levels inside are
                drawn alone. -5 costs nothing that can be seen. By default what the folder says, else all run.
            num_inner_steps: draw the innermost level first, alone, in so many steps, and the others around it in
                `num_inference_steps`; a list draws one level after another, innermost first. Callbacks see these
                drawings one after another. By default what the folder says, else all levels are drawn together.

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
