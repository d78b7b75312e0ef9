# SPDX-License-Identifier: Apache-2.0
"""Image to image: drawing over given pictures."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from diffusers.callbacks import MultiPipelineCallbacks, PipelineCallback

from diffusers_mdm.pipelines.drawing import input_checks as checks
from diffusers_mdm.pipelines.drawing.class_labels import ClassLabels
from diffusers_mdm.pipelines.drawing.conditioning import ConditionInputs
from diffusers_mdm.pipelines.drawing.image_inputs import ImageInput, Pictures, read_images
from diffusers_mdm.pipelines.drawing.loop import Drawing, Sample, StepCallback
from diffusers_mdm.pipelines.pipeline_output import MDMPipelineOutput
from diffusers_mdm.pipelines.pipeline_picture_base import PicturePipelineBase


class MDMImg2ImgPipeline(PicturePipelineBase):
    """Draw over given pictures: all levels start from the pictures at a noise strength (SDEdit, arXiv:2108.01073).

    Args:
        unet: the dolls, conditioned on texts, classes or both.
        scheduler: `MatryoshkaScheduler`, or one of the host's where a single doll is opened.
        text_encoder: as in `MDMPipeline`; None for a model of classes.
        tokenizer: its tokenizer.
        vae: for a model of latents, see `MDMPipeline`.
        id2label: names of the classes by number, see `MDMClassConditionalPipeline`.
    """

    def check_inputs(
        self,
        inputs: ConditionInputs,
        pictures: Pictures,
        strength: float = 0.8,
        num_images_per_prompt: int = 1,
        generator: torch.Generator | list[torch.Generator] | None = None,
        latents: Sample | None = None,
        micro_conditioning: Mapping[str, Any] | None = None,
        output_type: str = "pil",
        callback_on_step_end_tensor_inputs: Sequence[str] | None = None,
    ) -> int:
        """Refuse what cannot be drawn before anything is computed. Arguments as in `__call__`.

        Returns:
            B, the number of pictures to draw.

        Raises:
            ValueError: says what was wrong, what was expected and what to do.
            TypeError: `prompt` and `negative_prompt` are of different types.
        """
        counts, (height, width) = {"image": len(pictures.pixels)}, pictures.pixels.shape[-2:]
        num_images = self.check_batch(
            inputs, counts, num_images_per_prompt, output_type, callback_on_step_end_tensor_inputs
        )
        checks.check_strength(strength)
        checks.check_picture_size("image", height, width, self.picture_sides, self.picture_multiples)
        self.check_size_and_noise(num_images, height, width, generator, latents, micro_conditioning)
        return num_images

    @torch.no_grad()
    def __call__(
        self,
        prompt: str | list[str] | None = None,
        image: ImageInput | None = None,
        strength: float = 0.8,
        num_inference_steps: int = 50,
        timesteps: Sequence[int] | None = None,
        guidance_scale: float = 7.5,
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
    ) -> MDMPipelineOutput | tuple[Any, ...]:
        """Draw over given pictures.

        Args:
            prompt: one text or a list of them, for a model of texts.
            image: the pictures to start from: PIL images, arrays `(H, W, C)` or tensors `(C, H, W)`, one, a list or a
                batch, in [0, 1] or 8-bit. Their larger side has to be that of a doll, which is the outermost one that
                is opened. One picture for all prompts, one prompt for all pictures, or equally many.
            strength: which share of the steps is done, 0 to 1, and so how much of the pictures goes under in noise. 0
                returns the pictures as they are; anything above it does one step at least.
            num_inference_steps: number of denoising steps at strength 1.
            timesteps: the time steps themselves, descending, in 0 … num_train_timesteps - 1; `strength` chooses the
                last of them.
            guidance_scale: w of classifier-free guidance, at every level; 1 or less turns it off.
            negative_prompt: what guidance pushes away from: one text for a text, a list for a list; empty by default.
            num_images_per_prompt: pictures of each prompt, or of each given picture.
            eta: 0 for DDIM to 1 for ancestral sampling.
            generator: one, or one a picture: the same seed then gives the same picture in any batch.
            latents: noise N(0, 1) that the pictures are noised with: a pyramid, innermost first, or a tensor where
                one doll is opened.
            prompt_embeds: `(B, L, width)` from `encode_prompt`, in place of `prompt`.
            negative_prompt_embeds: the same shape, in place of `negative_prompt`.
            prompt_attention_mask: `(B, L)`, True where `prompt_embeds` has a token; None says everywhere.
            negative_prompt_attention_mask: the same for `negative_prompt_embeds`.
            class_labels: numbers or names, for a model of classes.
            negative_class_labels: what guidance pushes away from; the null class by default.
            micro_conditioning: e.g. `{"scale": 256}`; one number, one a picture, or two a picture (those of the
                unconditional rows first). What is missing takes the model's own value.
            guidance_rescale: 0 to 1, brings each level's spread back to that of the unguided prediction
                (arXiv:2305.08891).
            output_type: "pil", "np" (`(B, H, W, C)` in [0, 1]), "pt" (`(B, C, H, W)` in [0, 1]) or "latent" (the last
                sample, not clipped).
            output_pyramid: also return the pictures of the dolls inside.
            return_dict: False returns a tuple `(images,)`, or `(images, pyramid)` with `output_pyramid`.
            cross_attention_kwargs: e.g. `{"scale": 0.5}`, the strength of a LoRA.
            callback_on_step_end: called after each step as `(pipeline, step, timestep, tensors)`; the tensors it
                returns replace those of the pipeline. Set `pipeline._interrupt = True` to stop.
            callback_on_step_end_tensor_inputs: which tensors it gets, of `_callback_tensor_inputs`;
                "pred_original_sample" is a preview of the finished pyramid in [-1, 1] (None with host schedulers that
                do not tell).
            max_sequence_length: longer prompts are cut, with a warning.

        Raises:
            ValueError: see `check_inputs`.
            TypeError: `prompt` and `negative_prompt` are of different types.
        """
        if isinstance(callback_on_step_end, (PipelineCallback, MultiPipelineCallbacks)):
            callback_on_step_end_tensor_inputs = callback_on_step_end.tensor_inputs
        inputs = ConditionInputs(
            prompt,
            negative_prompt,
            prompt_embeds,
            negative_prompt_embeds,
            prompt_attention_mask,
            negative_prompt_attention_mask,
            class_labels,
            negative_class_labels,
        )
        pictures = read_images(image, self.num_picture_channels)
        num_images = self.check_inputs(
            inputs,
            pictures,
            strength,
            num_images_per_prompt,
            generator,
            latents,
            micro_conditioning,
            output_type,
            callback_on_step_end_tensor_inputs,
        )
        self.begin_drawing(guidance_scale, guidance_rescale, cross_attention_kwargs)
        device, (height, width) = self._execution_device, pictures.pixels.shape[-2:]

        # 1. Time steps, noise, the pictures at every level.
        schedule = self.weaken(self.retrieve_timesteps(num_inference_steps, device, timesteps), strength)
        noise = self.prepare_noise(num_images, height, width, self.sample_dtype, device, generator, latents)
        given = self.know_pictures(pictures, noise)
        if len(schedule) == 0:
            return self.finish_drawing(given.clean, output_type, output_pyramid, return_dict, given)

        # 2. What is asked for.
        conditioning, groups = self.encode_conditioning(inputs, num_images, max_sequence_length)
        drawing = Drawing(
            conditioning,
            groups,
            self.prepare_micro_conditioning(micro_conditioning, num_images, device),
            self.prepare_extra_step_kwargs(generator, eta),
            callback_on_step_end,
            callback_on_step_end_tensor_inputs,
        )

        # 3. Denoise all levels together, from the noised pictures.
        start = self.noised_sample(given.clean, given.noise, schedule[0])
        levels = self.denoise(start, schedule, drawing)

        # 4. Pictures.
        return self.finish_drawing(levels, output_type, output_pyramid, return_dict)
