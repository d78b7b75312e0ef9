# SPDX-License-Identifier: Apache-2.0
"""Image-to-image generation."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch

from diffusers_mdm.models import NestedUNetModel
from diffusers_mdm.pipelines.drawing.class_labels import ClassLabels
from diffusers_mdm.pipelines.drawing.given_images import image_size, know_images, noised_sample, read_given_images
from diffusers_mdm.pipelines.drawing.image_inputs import ImageInput
from diffusers_mdm.pipelines.drawing.loop import denoise
from diffusers_mdm.pipelines.drawing.request import Guider, Request, Sample, StepCallback, read_call
from diffusers_mdm.pipelines.drawing.setup import begin_drawing, set_timesteps, starting_noise
from diffusers_mdm.pipelines.pipeline_class_base import ClassPipelineBase
from diffusers_mdm.pipelines.pipeline_output import MDMPipelineOutput


class MDMImg2ImgPipeline(ClassPipelineBase):
    """Pipeline for image-to-image generation: all levels start from the image with noise added (SDEdit,
    arXiv:2108.01073).

    Args:
        unet: the model, conditioned on text, classes or both.
        scheduler: `MatryoshkaScheduler`, or one of diffusers' schedulers to generate a single level.
        text_encoder: as in `MDMPipeline`; None for a class-conditional model.
        tokenizer: its tokenizer.
        vae: for a model on latents; see `MDMPipeline`.
        id2label: class names by number; see `MDMClassConditionalPipeline`.
        drawing_defaults: default settings that suit the model; see `MDMPipeline`.
    """

    def resolve_size(self, request: Request) -> None:
        """Read the images, and fill in height and width from them; see `read_given_images` for their sizes.

        Args:
            request: receives the images and the size.
        """
        read_given_images(self, request, self.image_sides)
        request.height, request.width = image_size(request.images, self.vae_scale_factor)

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
        """Generate variations of images.

        Args:
            prompt: one text or a list of them, for a model with text.
            image: the images to start from: PIL images, arrays `(H, W, C)` or tensors `(C, H, W)`, one, a list or a
                batch, in [0, 1] or 8-bit; with a `vae` also latents, tensors `(B, c, h, w)` as `output_type="latent"`
                gives. Transparent areas become white. An image whose larger side is that of a level is used at that
                level; others are resized to the largest level. The aspect ratio is kept, except that both sides are
                rounded to sizes that the model supports; nothing is cropped. One image for all prompts, one prompt for
                all images, or equally many.
            strength: fraction of the steps that are run, 0 to 1, and so how much of the images is lost in noise. 0
                returns the images unchanged; above 0 at least one step is run.
            num_inference_steps: number of denoising steps at strength 1. Default: the pipeline's `drawing_defaults`,
                otherwise 50.
            timesteps: custom timesteps in decreasing order, in 0 … num_train_timesteps - 1; with `strength` below 1
                only the last of them are used.
            guidance_scale: guidance scale w, one for all levels or one per level, innermost first; 1 or less turns
                guidance off. Default: the pipeline's `drawing_defaults`, otherwise 7.5.
            negative_prompt: prompt for the unconditional prediction of guidance: a text if `prompt` is one, a list if
                it is a list; empty by default.
            num_images_per_prompt: results per prompt, or per input image.
            eta: 0 for DDIM to 1 for ancestral sampling.
            generator: one generator, or one per image: the same seed then gives the same image in any batch.
            latents: noise N(0, 1) that is added to the images: a pyramid, innermost first, or a tensor for a single
                level.
            prompt_embeds: text features `(B, L, width)` from `encode_prompt`, instead of `prompt`.
            negative_prompt_embeds: the same shape, instead of `negative_prompt`.
            prompt_attention_mask: `(B, L)`, True where `prompt_embeds` has a token; None means everywhere.
            negative_prompt_attention_mask: the same for `negative_prompt_embeds`.
            class_labels: class numbers or names, for a model with classes.
            negative_class_labels: class for the unconditional prediction of guidance; the null class by default.
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

        Raises:
            ValueError: see `check_inputs`.
            TypeError: `prompt` and `negative_prompt` are of different types.
        """
        request = read_call(locals())
        self.check_inputs(request)
        with begin_drawing(self, request) as drawing:
            self.encode_conditions(drawing)
            set_timesteps(drawing, request.strength)
            given = know_images(drawing, starting_noise(drawing))
            if not drawing.positions:
                return self.finish_drawing(drawing, given.clean, given)
            start = noised_sample(drawing, given.clean, given.noise)
            return self.finish_drawing(drawing, denoise(drawing, start))
