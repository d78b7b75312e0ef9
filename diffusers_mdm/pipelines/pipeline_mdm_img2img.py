# SPDX-License-Identifier: Apache-2.0
"""Image to image: drawing over given pictures."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch

from diffusers_mdm.models import NestedUNetModel
from diffusers_mdm.pipelines.drawing.class_labels import ClassLabels
from diffusers_mdm.pipelines.drawing.given_pictures import know_pictures, picture_size, read_pictures
from diffusers_mdm.pipelines.drawing.image_inputs import ImageInput
from diffusers_mdm.pipelines.drawing.loop import denoise
from diffusers_mdm.pipelines.drawing.request import Guider, Request, Sample, StepCallback, read_call
from diffusers_mdm.pipelines.drawing.setup import begin_drawing, noised_sample, set_timesteps, starting_noise
from diffusers_mdm.pipelines.pipeline_class_base import ClassPipelineBase
from diffusers_mdm.pipelines.pipeline_output import MDMPipelineOutput


class MDMImg2ImgPipeline(ClassPipelineBase):
    """Draw over given pictures: all levels start from the pictures at a noise strength (SDEdit, arXiv:2108.01073).

    Args:
        unet: the model, conditioned on texts, classes or both.
        scheduler: `MatryoshkaScheduler`, or one of diffusers' where a single level is drawn.
        text_encoder: as in `MDMPipeline`; None for a model of classes.
        tokenizer: its tokenizer.
        vae: for a model of latents, see `MDMPipeline`.
        id2label: names of the classes by number, see `MDMClassConditionalPipeline`.
        drawing_defaults: settings that suit the model, see `MDMPipeline`.
    """

    def resolve_size(self, request: Request) -> None:
        """Read the pictures, which say height and width; see `read_pictures` for their sizes.

        Args:
            request: takes the pictures.
        """
        read_pictures(self, request, self.picture_sides)
        request.height, request.width = picture_size(request.pictures, self.vae_scale_factor)

    @torch.no_grad()
    def __call__(
        self,
        prompt: str | list[str] | None = None,
        image: ImageInput | None = None,
        strength: float = 0.8,
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
        class_labels: ClassLabels | None = None,
        negative_class_labels: ClassLabels | None = None,
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
    ) -> MDMPipelineOutput | tuple[Any, ...]:
        """Draw over given pictures.

        Args:
            prompt: one text or a list of them, for a model of texts.
            image: the pictures to start from: PIL images, arrays `(H, W, C)` or tensors `(C, H, W)`, one, a list or a
                batch, in [0, 1] or 8-bit; with a `vae` also latents, tensors `(B, c, h, w)` as `output_type="latent"`
                gives. What is transparent is put on white. A picture whose larger side is that of a level is drawn at
                that level; any other is resized to the largest level. Its aspect ratio stays, except that both sides
                are rounded to what the model can draw; nothing is cropped. One picture for all prompts, one prompt
                for all pictures, or equally many.
            strength: which share of the steps is done, 0 to 1, and so how much of the pictures goes under in noise. 0
                returns the pictures as they are; anything above it does one step at least.
            num_inference_steps: number of denoising steps at strength 1. By default what the pipeline's folder says
                suits its model (`drawing_defaults`), else 50.
            timesteps: the time steps themselves, descending, in 0 … num_train_timesteps - 1; `strength` chooses the
                last of them.
            guidance_scale: w of the guidance, one for all levels or one a level, innermost first; 1 or less turns it
                off. By default what the pipeline's folder says, else 7.5.
            negative_prompt: what guidance pushes away from: one text for a text, a list for a list; empty by default.
            num_images_per_prompt: pictures of each prompt, or of each given picture.
            eta: 0 for DDIM to 1 for ancestral sampling.
            generator: one, or one a picture: the same seed then gives the same picture in any batch.
            latents: noise N(0, 1) that the pictures are noised with: a pyramid, innermost first, or a tensor where
                one level is drawn.
            prompt_embeds: `(B, L, width)` from `encode_prompt`, in place of `prompt`.
            negative_prompt_embeds: the same shape, in place of `negative_prompt`.
            prompt_attention_mask: `(B, L)`, True where `prompt_embeds` has a token; None says everywhere.
            negative_prompt_attention_mask: the same for `negative_prompt_embeds`.
            class_labels: numbers or names, for a model of classes.
            negative_class_labels: what guidance pushes away from; the null class by default.
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

        Raises:
            ValueError: see `check_inputs`.
            TypeError: `prompt` and `negative_prompt` are of different types.
        """
        request = read_call(locals())
        self.check_inputs(request)
        with begin_drawing(self, request) as drawing:
            self.encode_conditions(drawing)
            set_timesteps(drawing, request.strength)
            given = know_pictures(drawing, starting_noise(drawing))
            if not drawing.positions:
                return self.finish_drawing(drawing, given.clean, given)
            start = noised_sample(drawing, given.clean, given.noise)
            return self.finish_drawing(drawing, denoise(drawing, start))
