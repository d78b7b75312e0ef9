# SPDX-License-Identifier: Apache-2.0
"""Super-resolution with a model trained for it: the second part of a cascade of diffusion models."""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from diffusers.schedulers import KarrasDiffusionSchedulers
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from diffusers_mdm.checked_values import check_number, check_whole_number
from diffusers_mdm.models import NestedUNetModel
from diffusers_mdm.models.level_config import NOISE_LEVEL
from diffusers_mdm.pipelines.drawing.class_labels import ClassLabels
from diffusers_mdm.pipelines.drawing.image_inputs import ImageInput, fitting_size, read_images
from diffusers_mdm.pipelines.drawing.latent_space import Autoencoder
from diffusers_mdm.pipelines.drawing.loop import denoise
from diffusers_mdm.pipelines.drawing.request import Guider, Request, Sample, StepCallback, read_call
from diffusers_mdm.pipelines.drawing.setup import Drawing, begin_drawing, scaled_noise, set_timesteps, starting_noise
from diffusers_mdm.pipelines.pipeline_class_base import ClassPipelineBase
from diffusers_mdm.pipelines.pipeline_output import MDMPipelineOutput
from diffusers_mdm.pyramid import pyramid_noise
from diffusers_mdm.schedulers import MatryoshkaScheduler

MAX_SIDE = 2**16


def enlarge(small: torch.Tensor, height: int, width: int) -> torch.Tensor:
    """Enlarge images `(B, C, h, w)` to `(B, C, height, width)`, bilinearly."""
    return F.interpolate(small, (height, width), mode="bilinear", align_corners=False)


def add_condition_noise(enlarged: torch.Tensor, noise: torch.Tensor, noise_level: torch.Tensor) -> torch.Tensor:
    """Add noise to the images that a model enlarges (noise conditioning augmentation, arXiv:2106.15282, section 4).

    Args:
        enlarged: `(B, C, H, W)` in [-1, 1].
        noise: N(0, 1) noise of the same shape.
        noise_level: `(B,)`, the standard deviation s of the noise, 0 to 1; the images are multiplied by sqrt(1 - s^2).
    """
    level = noise_level.to(enlarged.dtype).view(-1, 1, 1, 1)
    return (1 - level.square()).sqrt() * enlarged + level * noise


class MDMSuperResolutionPipeline(ClassPipelineBase):
    """Pipeline for enlarging images with a model that was trained to enlarge them.

    Together with a pipeline for small images it is a cascade: the model sees the small image, enlarged and with some
    noise added, as additional input channels. (`MDMUpscalePipeline` needs no such model: it uses the levels of a
    text-to-image model.)

    Args:
        unet: a model with one level, whose input has twice as many channels as its output: the noisy image, then the
            enlarged one. It has a micro-condition `noise_level`, and may be conditioned on text, classes or both.
        scheduler: `MatryoshkaScheduler`, or one of diffusers' schedulers.
        text_encoder: as in `MDMPipeline`; None for a model without text.
        tokenizer: its tokenizer.
        vae: must be None: these models work on pixels.
        id2label: class names by number; see `MDMClassConditionalPipeline`.
        low_resolution: side in pixels of the small images that the model was trained on.
        max_noise_level: the largest noise level that it was trained on, 0 to 1.
        drawing_defaults: default settings that suit the model; see `MDMPipeline`.
    """

    def __init__(
        self,
        unet: NestedUNetModel | None,
        scheduler: MatryoshkaScheduler | KarrasDiffusionSchedulers | None,
        text_encoder: PreTrainedModel | None = None,
        tokenizer: PreTrainedTokenizerBase | None = None,
        vae: Autoencoder | None = None,
        id2label: dict[int, str] | dict[str, str] | None = None,
        low_resolution: int | None = None,
        max_noise_level: float = 0.0,
        drawing_defaults: dict[str, Any] | None = None,
    ) -> None:
        if vae is not None:
            raise ValueError("MDMSuperResolutionPipeline works on pixels: omit `vae`.")
        super().__init__(unet, scheduler, text_encoder, tokenizer, None, id2label, drawing_defaults)
        if low_resolution is not None:
            check_whole_number(low_resolution, "`low_resolution`", 1, MAX_SIDE)
        check_number(max_noise_level, "`max_noise_level`", 0.0, 1.0)
        self.register_to_config(low_resolution=low_resolution, max_noise_level=max_noise_level)

    def check_model(self) -> None:
        """Check that the model was made for super-resolution.

        Raises:
            ValueError: says how it differs.
        """
        config = self.unet.config
        keys = {key for level in config.micro_conditioning_keys for key in level}
        if config.in_channels != 2 * config.out_channels or self.unet.num_levels != 1 or NOISE_LEVEL not in keys:
            raise ValueError(
                f"This model has {self.unet.num_levels} level(s), {config.in_channels} input and "
                f"{config.out_channels} output channels and the micro-conditions {sorted(keys)}. Super-resolution "
                f"needs one level, twice as many input as output channels, and {NOISE_LEVEL!r}: train one with "
                "`super_resolution` in the recipe, or use MDMUpscalePipeline for an ordinary model of several levels."
            )
        side, low = self.image_sides[-1], self.config.low_resolution
        if low is None or side % low or side == low:
            raise ValueError(
                f"`low_resolution` of this pipeline is {low}; expected the side of the small images that the model "
                f"was trained on, which divides its own, {side}."
            )

    def resolve_size(self, request: Request) -> None:
        """Read the images, resize them to those that the model enlarges, and fill in height and width of the result.

        Args:
            request: receives the images and the size.

        Raises:
            ValueError: see `read_images`.
        """
        low = self.config.low_resolution
        factor = self.image_sides[-1] // low
        multiple = max(1, -(-self.image_multiples[-1] // factor))
        fit = functools.partial(fitting_size, sides=(low,), multiples=(multiple,))
        request.images = read_images(request.image, self.num_image_channels, fit=fit)
        height, width = request.images.tensor.shape[-2:]
        request.height, request.width = factor * height, factor * width

    def condition_on_images(self, drawing: Drawing, noise_level: float) -> None:
        """Enlarge the images of a drawing, and add noise to them.

        Args:
            drawing: receives them.
            noise_level: standard deviation of the noise, 0 to 1.
        """
        request = drawing.request
        given = request.images.tensor.to(drawing.device, drawing.dtype)
        given = given.repeat_interleave(request.num_images // len(given), dim=0)
        enlarged = enlarge(2 * given - 1, request.height, request.width)
        noise = pyramid_noise([enlarged.shape], request.generator, drawing.device, drawing.dtype)[0]
        levels = torch.full((len(enlarged),), float(noise_level), device=drawing.device)
        drawing.beside = add_condition_noise(enlarged, noise, levels)

    @torch.no_grad()
    def __call__(
        self,
        prompt: str | list[str] | None = None,
        image: ImageInput | None = None,
        noise_level: float = 0.0,
        num_inference_steps: int | None = None,
        timesteps: Sequence[int] | None = None,
        guidance_scale: float | None = None,
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
    ) -> MDMPipelineOutput | tuple[Any, ...]:
        """Enlarge images.

        Args:
            prompt: one text or a list of them, for a model with text.
            image: the small images, of any kind that diffusers accepts, in [0, 1] or 8-bit; images of other sizes are
                first resized to `low_resolution`, with the aspect ratio kept as closely as the model's sizes allow.
                One image for all prompts, one prompt for all images, or equally many.
            noise_level: standard deviation of the noise that is added to the enlarged images, 0 to the pipeline's
                `max_noise_level`. Noise hides small errors of generated images from the model, which then draws more
                details of its own.
            num_inference_steps: number of denoising steps. Default: the pipeline's `drawing_defaults`, otherwise 50.
            timesteps: custom timesteps in decreasing order, in 0 … num_train_timesteps - 1.
            guidance_scale: guidance scale w; 1 or less turns guidance off. Default: the pipeline's
                `drawing_defaults`, otherwise 7.5.
            negative_prompt: prompt for the unconditional prediction of guidance; empty by default.
            num_images_per_prompt: results per prompt, or per image.
            eta: 0 for DDIM to 1 for ancestral sampling.
            generator: one generator, or one per image: the same seed then gives the same image in any batch.
            latents: starting noise N(0, 1), `(B, C, H, W)`.
            prompt_embeds: text features `(B, L, width)` from `encode_prompt`, instead of `prompt`.
            negative_prompt_embeds: the same shape, instead of `negative_prompt`.
            prompt_attention_mask: `(B, L)`, True where `prompt_embeds` has a token; None means everywhere.
            negative_prompt_attention_mask: the same for `negative_prompt_embeds`.
            class_labels: class numbers or names, for a model with classes.
            negative_class_labels: class for the unconditional prediction of guidance; the null class by default.
            micro_conditioning: values of micro-conditions other than `noise_level`.
            guidance_rescale: 0 to 1, see `MDMPipeline`.
            output_type: "pil", "np", "pt" or "latent"; see `MDMPipeline`.
            output_pyramid: also return a list of all levels, which are the images alone.
            return_dict: False returns a tuple `(images,)`.
            cross_attention_kwargs: e.g. `{"scale": 0.5}`, the strength of a LoRA.
            callback_on_step_end: called after each step; see `MDMPipeline`.
            callback_on_step_end_tensor_inputs: which tensors it receives, from `_callback_tensor_inputs`.
            max_sequence_length: longer prompts are truncated, with a warning.
            guider: guidance method; see `MDMPipeline`.
            guidance_unet: a weaker model for super-resolution, for autoguidance.

        Raises:
            ValueError: see `check_inputs`, `check_model` and `resolve_size`.
            TypeError: `prompt` and `negative_prompt` are of different types.
        """
        arguments = locals()
        del arguments["noise_level"]
        request = read_call(arguments)
        check_number(noise_level, "`noise_level`", 0.0, self.config.max_noise_level)
        if NOISE_LEVEL in (request.micro_conditioning or {}):
            raise ValueError(f"Pass {NOISE_LEVEL!r} as the argument `noise_level`, not in `micro_conditioning`.")
        request.micro_conditioning = {**(request.micro_conditioning or {}), NOISE_LEVEL: float(noise_level)}
        self.check_inputs(request)
        with begin_drawing(self, request) as drawing:
            self.encode_conditions(drawing)
            set_timesteps(drawing)
            noise = starting_noise(drawing)
            self.condition_on_images(drawing, noise_level)
            return self.finish_drawing(drawing, denoise(drawing, scaled_noise(drawing.scheduler, noise)))
