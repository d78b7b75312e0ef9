# SPDX-License-Identifier: Apache-2.0
"""Upscaling with the text-to-image model: the inner levels are given, and the outer levels are generated."""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from diffusers.utils import logging

from diffusers_mdm.models import NestedUNetModel
from diffusers_mdm.pipelines.drawing.class_labels import ClassLabels
from diffusers_mdm.pipelines.drawing.consistency import make_consistent
from diffusers_mdm.pipelines.drawing.given_images import image_size, know_images, read_given_images
from diffusers_mdm.pipelines.drawing.image_inputs import ImageInput
from diffusers_mdm.pipelines.drawing.loop import denoise, hold_known
from diffusers_mdm.pipelines.drawing.request import (
    UPSCALE_DEFAULTS,
    UPSCALE_PREFIX,
    Guider,
    Request,
    Sample,
    StepCallback,
    read_call,
)
from diffusers_mdm.pipelines.drawing.resampling import repeat_stretches
from diffusers_mdm.pipelines.drawing.setup import (
    begin_drawing,
    scaled_noise,
    set_timesteps,
    starting_noise,
)
from diffusers_mdm.pipelines.pipeline_class_base import ClassPipelineBase
from diffusers_mdm.pipelines.pipeline_output import MDMPipelineOutput
from diffusers_mdm.pyramid import level_of_size

logger = logging.get_logger(__name__)


class MDMUpscalePipeline(ClassPipelineBase):
    """Pipeline for upscaling: generates the outer levels for given inner levels, with the unchanged text-to-image
    model.

    The model describes all levels jointly, so it knows which large images belong to a small one. At every step the
    known levels are replaced by the given image with noise added (see `known_pixels`), and the others are denoised
    together with them. The averages of the other levels are known too, and are imposed on each prediction (see
    `project_prediction`): the noise of a large image averages out over a block of pixels, so its own averages contain
    more information than the noisy small image, and without this the levels would soon diverge. (Not for latents,
    whose averages are not those of the images.)

    Args:
        unet: the model, of two levels or more, conditioned on texts, classes or both.
        scheduler: `MatryoshkaScheduler`.
        text_encoder: as in `MDMPipeline`; None for a class-conditional model.
        tokenizer: its tokenizer.
        vae: for a model on latents; see `MDMPipeline`.
        id2label: class names by number; see `MDMClassConditionalPipeline`.
        drawing_defaults: default settings that suit the model; see `MDMPipeline`.
    """

    _published_defaults = UPSCALE_DEFAULTS
    _defaults_prefix = UPSCALE_PREFIX

    def resolve_size(self, request: Request) -> None:
        """Read the images, and fill in height and width of the result, by default those of the largest level.

        Args:
            request: receives the images and the size; width follows from height.

        Raises:
            ValueError: there is no level inside the one to generate, or images of this shape cannot have that size.
        """
        sides, wanted = self.image_sides, max(request.height or 0, request.width or 0)
        inside = [side for side in sides[:-1] if not wanted or side < wanted]
        if not inside:
            possible = ", ".join(map(str, sides[1:])) or "nothing"
            raise ValueError(
                f"There is no level inside images of {wanted or sides[-1]} pixels to start from: this model has "
                f"levels of {', '.join(map(str, sides))} pixels, and can upscale to {possible}."
            )
        read_given_images(self, request, sides[:-1], inside[-1])
        height, width = image_size(request.images, self.vae_scale_factor)
        given = max((max(size) for size in request.images.given_sizes), default=0)
        if given >= sides[-1]:
            logger.warning(
                f"`image` is as large as this model draws or larger ({given} pixels); it is reduced to {height} x "
                f"{width} and upscaled from there."
            )
        level = level_of_size(height, width, sides, self.aspect_ratio_buckets) or 0
        factors = [side // sides[level] for side in sides[level + 1 :]]
        targets = [(factor * height, factor * width) for factor in factors]
        fitting = [
            target for target in targets if request.height in (None, target[0]) and request.width in (None, target[1])
        ]
        if not fitting:
            possible = " or ".join(f"{high} x {wide}" for high, wide in targets)
            raise ValueError(
                f"Images of {height} x {width} pixels cannot be upscaled to {request.height} x {request.width}: "
                f"expected height and width (one of them is enough) of {possible}."
            )
        is_open = request.height is None and request.width is None
        request.height, request.width = fitting[-1] if is_open else fitting[0]

    @torch.no_grad()
    def __call__(
        self,
        prompt: str | list[str] | None = None,
        image: ImageInput | None = None,
        height: int | None = None,
        width: int | None = None,
        num_inference_steps: int | None = None,
        timesteps: Sequence[int] | None = None,
        guidance_scale: float | Sequence[float] | None = None,
        negative_prompt: str | list[str] | None = None,
        num_images_per_prompt: int = 1,
        num_resampling_steps: int | None = None,
        jump_length: int = 1,
        exact_consistency: bool = False,
        eta: float | None = None,
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
        """Upscale images.

        Averaging the result over the block of pixels for each input pixel gives the input back, up to rounding: 1e-5
        in [0, 1], or half an 8-bit step with `output_type="pil"`. (For a model on latents only roughly, and a callback
        can change anything.)

        With `exact_consistency` it does so exactly. For 8-bit images (PIL images, uint8), all pixels of the result are
        multiples of 1/255, and those of a block sum to exactly the input pixel times their number. For floats, the
        averages are exact to 1e-6, and with `output_type="pil"` to half an 8-bit step divided by the number of pixels
        in a block.

        Args:
            prompt: one text or a list of them, for a model with text.
            image: the small images: PIL images, arrays `(H, W, C)` or tensors `(C, H, W)`, one, a list or a batch, in
                [0, 1] or 8-bit; with a `vae` also latents, tensors `(B, c, h, w)` as `output_type="latent"` gives.
                Transparent areas become white. Their larger side must be that of a level inside the one to generate;
                images of other sizes are first resized to the largest of these. The aspect ratio is kept, except that
                both sides are rounded to sizes that the model supports; nothing is cropped. One image for all prompts,
                one prompt for all images, or equally many.
            height: height of the result in pixels, for a level other than the largest one.
            width: width of the result in pixels, which follows from the height.
            num_inference_steps: number of denoising steps. Default: the pipeline's `drawing_defaults`, otherwise 50.
            timesteps: custom timesteps in decreasing order, in 0 … num_train_timesteps - 1.
            guidance_scale: guidance scale w, one for all levels or one per level, innermost first; 1 or less turns
                guidance off. Default: the pipeline's `drawing_defaults`, otherwise 7.5.
            negative_prompt: prompt for the unconditional prediction of guidance: a text if `prompt` is one, a list if
                it is a list; empty by default.
            num_images_per_prompt: results per prompt, or per input image.
            num_resampling_steps: how often each group of `jump_length` steps is run, with noise added again in between
                (RePaint); each repetition takes as much time again, and makes the levels fit together better. Default:
                the pipeline's `drawing_defaults`, otherwise 1.
            jump_length: number of steps in such a group.
            exact_consistency: return the nearest images whose averages are exactly the input.
            eta: 0 for DDIM to 1 for ancestral sampling. Default: the pipeline's `drawing_defaults`, otherwise 0.
            generator: one generator, or one per image: the same seed then gives the same image in any batch.
            latents: noise N(0, 1) for every level, innermost first; it is also used for the known levels.
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
            output_pyramid: also return the images of the inner levels: the input, and any levels in between.
            return_dict: False returns a tuple `(images,)`, or `(images, pyramid)` with `output_pyramid`.
            cross_attention_kwargs: e.g. `{"scale": 0.5}`, the strength of a LoRA.
            callback_on_step_end: called after each step as `(pipeline, step, timestep, tensors)`; tensors that it
                returns replace those of the pipeline. Set `pipeline._interrupt = True` to stop.
            callback_on_step_end_tensor_inputs: which tensors it receives, from `_callback_tensor_inputs`;
                "pred_original_sample" is a preview of the finished pyramid in [-1, 1].
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
            ValueError: see `check_inputs` and `resolve_size`.
            TypeError: `prompt` and `negative_prompt` are of different types.
        """
        request = read_call(locals())
        self.check_inputs(request)
        with begin_drawing(self, request) as drawing:
            self.encode_conditions(drawing)
            set_timesteps(drawing)
            noise = starting_noise(drawing)
            known = drawing.known = know_images(drawing, noise)
            drawing.average = known.clean[-1] if self.vae is None else None
            start = hold_known(drawing, scaled_noise(drawing.scheduler, noise), drawing.timesteps[0])
            repeat_stretches(drawing)
            levels = denoise(drawing, start)
            refine = functools.partial(
                make_consistent,
                average=2 * known.pixels[-1] - 1,
                eight_bit=request.images.is_eight_bit or output_type == "pil",
            )
            return self.finish_drawing(drawing, levels, known, refine if exact_consistency else None)
