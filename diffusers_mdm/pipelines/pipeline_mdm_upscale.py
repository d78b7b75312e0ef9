# SPDX-License-Identifier: Apache-2.0
"""Upscaling without a further network: the inner levels are given, the outer ones are drawn."""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from diffusers.utils import logging

from diffusers_mdm.models import NestedUNetModel
from diffusers_mdm.pipelines.drawing.class_labels import ClassLabels
from diffusers_mdm.pipelines.drawing.consistency import make_consistent
from diffusers_mdm.pipelines.drawing.given_pictures import know_pictures, picture_size, read_pictures
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
from diffusers_mdm.pipelines.drawing.setup import (
    begin_drawing,
    repeat_stretches,
    scaled_noise,
    set_timesteps,
    starting_noise,
)
from diffusers_mdm.pipelines.pipeline_class_base import ClassPipelineBase
from diffusers_mdm.pipelines.pipeline_output import MDMPipelineOutput

logger = logging.get_logger(__name__)


class MDMUpscalePipeline(ClassPipelineBase):
    """Draw the outer levels of pictures whose inner levels are given, with the text-to-image model as it is.

    A pyramid is modelled jointly, so the model knows which large pictures belong to a small one. At every step the
    levels that are known are replaced by their noised truth (see `known_pixels`), and the others are denoised beside
    them. What is known of the others, their averages, is put into each prediction (see `project_prediction`): the
    noise of a large picture averages out over the pixels of a block, so that its own averages say more about it than
    the noisy small picture beside it, and without that they soon go their own way. (Not so for latents, whose averages
    are not those of the pictures.)

    Args:
        unet: the model, of two levels or more, conditioned on texts, classes or both.
        scheduler: `MatryoshkaScheduler`.
        text_encoder: as in `MDMPipeline`; None for a model of classes.
        tokenizer: its tokenizer.
        vae: for a model of latents, see `MDMPipeline`.
        id2label: names of the classes by number, see `MDMClassConditionalPipeline`.
        drawing_defaults: settings that suit the model, see `MDMPipeline`.
    """

    _published_defaults = UPSCALE_DEFAULTS
    _defaults_prefix = UPSCALE_PREFIX

    def resolve_size(self, request: Request) -> None:
        """Read the pictures, and fill in height and width of those to draw, by default the largest level's.

        Args:
            request: takes the pictures and the size; width follows from height.

        Raises:
            ValueError: there is no level inside the one to draw, or pictures of this shape cannot become that large.
        """
        sides, wanted = self.picture_sides, max(request.height or 0, request.width or 0)
        inside = [side for side in sides[:-1] if not wanted or side < wanted]
        if not inside:
            possible = ", ".join(map(str, sides[1:])) or "nothing"
            raise ValueError(
                f"There is no level inside pictures of {wanted or sides[-1]} pixels to start from: this model draws "
                f"{', '.join(map(str, sides))} pixels, and can upscale to {possible}."
            )
        read_pictures(self, request, sides[:-1], inside[-1])
        height, width = picture_size(request.pictures, self.vae_scale_factor)
        given = max((max(size) for size in request.pictures.given_sizes), default=0)
        if given >= sides[-1]:
            logger.warning(
                f"`image` is as large as this model draws or larger ({given} pixels); it is shrunk to {height} x "
                f"{width} and drawn anew from there."
            )
        factors = [side // max(height, width) for side in sides if side > max(height, width)]
        targets = [(factor * height, factor * width) for factor in factors]
        fitting = [
            target for target in targets if request.height in (None, target[0]) and request.width in (None, target[1])
        ]
        if not fitting:
            possible = " or ".join(f"{high} x {wide}" for high, wide in targets)
            raise ValueError(
                f"Pictures of {height} x {width} pixels cannot become {request.height} x {request.width}: expected "
                f"height and width (one alone is enough) of {possible}."
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
        """Draw larger pictures that belong to the given ones.

        Averaging the result over the blocks of pixels that stand for one given pixel gives the picture back to
        rounding: to 1e-5 in [0, 1], with `output_type="pil"` to half an 8-bit step. (With a model of latents only
        roughly; and a callback may change anything.)

        With `exact_consistency` it does exactly, whatever happened in between. Given 8-bit pictures (PIL images,
        uint8), all pixels of the result are whole 255ths, and those of a block sum to exactly the given number times
        their count. Given floats, the averages are exact to 1e-6, and with `output_type="pil"` to half an 8-bit step
        over the number of pixels of a block.

        Args:
            prompt: one text or a list of them, for a model of texts.
            image: the small pictures: PIL images, arrays `(H, W, C)` or tensors `(C, H, W)`, one, a list or a batch,
                in [0, 1] or 8-bit; with a `vae` also latents, tensors `(B, c, h, w)` as `output_type="latent"` gives.
                What is transparent is put on white. Their larger side is that of a level inside the one to draw; a
                picture of another size is first resized to the largest of these. Its aspect ratio stays, except that
                both sides are rounded to what the model can draw; nothing is cropped. One picture for all prompts,
                one prompt for all pictures, or equally many.
            height: pixels of the result, for another level than the largest one.
            width: pixels of the result; it follows from the height.
            num_inference_steps: number of denoising steps. By default what the pipeline's folder says suits its model
                (`drawing_defaults`), else 50.
            timesteps: the time steps themselves, descending, in 0 … num_train_timesteps - 1.
            guidance_scale: w of the guidance, one for all levels or one a level, innermost first; 1 or less turns it
                off. By default what the pipeline's folder says, else 7.5.
            negative_prompt: what guidance pushes away from: one text for a text, a list for a list; empty by default.
            num_images_per_prompt: pictures of each prompt, or of each given picture.
            num_resampling_steps: how often each stretch of `jump_length` steps is gone through, with noise put back in
                between (RePaint); each costs as much time again, for more harmony between the levels. By
                default what the pipeline's folder says, else 1.
            jump_length: steps of such a stretch.
            exact_consistency: return the nearest pictures whose averages are exactly the given ones.
            eta: 0 for DDIM to 1 for ancestral sampling. By default what the pipeline's folder says, else 0.
            generator: one, or one a picture: the same seed then gives the same picture in any batch.
            latents: noise N(0, 1) for every level, innermost first; the known levels take theirs from it too.
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
            output_pyramid: also return the pictures of the levels inside: the given ones, and those between.
            return_dict: False returns a tuple `(images,)`, or `(images, pyramid)` with `output_pyramid`.
            cross_attention_kwargs: e.g. `{"scale": 0.5}`, the strength of a LoRA.
            callback_on_step_end: called after each step as `(pipeline, step, timestep, tensors)`; the tensors it
                returns replace those of the pipeline. Set `pipeline._interrupt = True` to stop.
            callback_on_step_end_tensor_inputs: which tensors it gets, of `_callback_tensor_inputs`;
                "pred_original_sample" is a preview of the finished pyramid in [-1, 1].
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
            ValueError: see `check_inputs` and `resolve_size`.
            TypeError: `prompt` and `negative_prompt` are of different types.
        """
        request = read_call(locals())
        self.check_inputs(request)
        with begin_drawing(self, request) as drawing:
            self.encode_conditions(drawing)
            set_timesteps(drawing)
            noise = starting_noise(drawing)
            known = drawing.known = know_pictures(drawing, noise)
            drawing.average = known.clean[-1] if self.vae is None else None
            start = hold_known(drawing, scaled_noise(drawing.scheduler, noise), drawing.timesteps[0])
            repeat_stretches(drawing)
            levels = denoise(drawing, start)
            refine = functools.partial(
                make_consistent,
                average=2 * known.pixels[-1] - 1,
                eight_bit=request.pictures.is_eight_bit or output_type == "pil",
            )
            return self.finish_drawing(drawing, levels, known, refine if exact_consistency else None)
