# SPDX-License-Identifier: Apache-2.0
"""Upscaling without a further network: the inner levels are given, the outer ones are drawn."""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from diffusers.callbacks import MultiPipelineCallbacks, PipelineCallback

from diffusers_mdm.pipelines.drawing import input_checks as checks
from diffusers_mdm.pipelines.drawing.class_labels import ClassLabels
from diffusers_mdm.pipelines.drawing.conditioning import ConditionInputs
from diffusers_mdm.pipelines.drawing.consistency import project_onto_average, round_to_eight_bits
from diffusers_mdm.pipelines.drawing.image_inputs import ImageInput, read_images
from diffusers_mdm.pipelines.drawing.loop import Drawing, Sample, StepCallback
from diffusers_mdm.pipelines.drawing.resampling import resampled_positions
from diffusers_mdm.pipelines.pipeline_output import MDMPipelineOutput
from diffusers_mdm.pipelines.pipeline_picture_base import PicturePipelineBase
from diffusers_mdm.pyramid import Pyramid


class MDMUpscalePipeline(PicturePipelineBase):
    """Draw the outer levels of pictures whose inner levels are given, with the text-to-image model as it is.

    A pyramid is modelled jointly, so the model knows which large pictures belong to a small one. At every step the
    levels that are known are replaced by their noised truth (see `known_pixels`), and the others are denoised beside
    them. What is known of the others, their averages, is put into each prediction (see `project_prediction`): the
    noise of a large picture averages out over the pixels of a block, so that its own averages say more about it than
    the noisy small picture beside it, and without that they soon go their own way. (Not so for latents, whose averages
    are not those of the pictures.)

    Args:
        unet: the dolls, two or more; conditioned on texts, classes or both.
        scheduler: `MatryoshkaScheduler`.
        text_encoder: as in `MDMPipeline`; None for a model of classes.
        tokenizer: its tokenizer.
        vae: for a model of latents, see `MDMPipeline`.
        id2label: names of the classes by number, see `MDMClassConditionalPipeline`.
    """

    def resolve_target(self, size: tuple[int, int], height: int | None, width: int | None) -> tuple[int, int]:
        """Give height and width of the pictures to draw.

        Args:
            size: height and width of the given pictures.
            height: pixels; by default the largest doll is drawn.
            width: pixels; follows from the height.

        Raises:
            ValueError: the given pictures have the size of no doll, or of the largest one, or another shape.
        """
        sides = self.picture_sides
        checks.check_picture_size("image", *size, sides, self.picture_multiples)
        if max(size) == sides[-1]:
            raise ValueError(
                f"`image` is {size[0]} x {size[1]} pixels, as this model draws; give pictures of an inner "
                f"doll, whose larger side is one of {', '.join(map(str, sides[:-1]))}."
            )
        factors = [side // max(size) for side in sides if side > max(size)]
        targets = [(factor * size[0], factor * size[1]) for factor in factors]
        if height is None and width is None:
            return targets[-1]
        for target in targets:
            if height in (None, target[0]) and width in (None, target[1]):
                return target
        raise ValueError(
            f"Pictures of {size[0]} x {size[1]} pixels cannot become {height} x {width}: expected height and width "
            f"(one alone is enough) of {' or '.join(f'{target[0]} x {target[1]}' for target in targets)}."
        )

    def check_inputs(
        self,
        inputs: ConditionInputs,
        num_pictures: int,
        height: int,
        width: int,
        num_images_per_prompt: int = 1,
        num_resampling_steps: int = 1,
        jump_length: int = 1,
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
        num_images = self.check_batch(
            inputs, {"image": num_pictures}, num_images_per_prompt, output_type, callback_on_step_end_tensor_inputs
        )
        checks.check_resampling(num_resampling_steps, jump_length, self.scheduler)
        self.check_size_and_noise(num_images, height, width, generator, latents, micro_conditioning)
        return num_images

    def make_consistent(self, pictures: Pyramid, average: torch.Tensor, *, eight_bit: bool) -> Pyramid:
        """The nearest pictures whose averages are the given ones, at every level larger than these.

        Args:
            pictures: levels `(B, C, H_i, W_i)`, innermost first.
            average: the given pictures `(B, C, h, w)` in [-1, 1].
            eight_bit: also put the pixels on the grid of 8 bits.

        Returns:
            Levels in [-1, 1]; see `project_onto_average` and `round_to_eight_bits` for how exact they are.
        """
        consistent = []
        for level in pictures:
            if level.shape[-2] > average.shape[-2]:
                level = project_onto_average(level, average)
                level = round_to_eight_bits(level, average) if eight_bit else level
            consistent.append(level)
        return consistent

    @torch.no_grad()
    def __call__(
        self,
        prompt: str | list[str] | None = None,
        image: ImageInput | None = None,
        height: int | None = None,
        width: int | None = None,
        num_inference_steps: int = 50,
        timesteps: Sequence[int] | None = None,
        guidance_scale: float = 7.5,
        negative_prompt: str | list[str] | None = None,
        num_images_per_prompt: int = 1,
        num_resampling_steps: int = 1,
        jump_length: int = 1,
        exact_consistency: bool = False,
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
                in [0, 1] or 8-bit. Their larger side has to be that of a doll inside. One picture for all prompts, one
                prompt for all pictures, or equally many.
            height: pixels of the result, for another doll than the largest one.
            width: pixels of the result; it follows from the height.
            num_inference_steps: number of denoising steps.
            timesteps: the time steps themselves, descending, in 0 … num_train_timesteps - 1.
            guidance_scale: w of classifier-free guidance, at every level; 1 or less turns it off.
            negative_prompt: what guidance pushes away from: one text for a text, a list for a list; empty by default.
            num_images_per_prompt: pictures of each prompt, or of each given picture.
            num_resampling_steps: how often each stretch of `jump_length` steps is gone through, with noise put back in
                between (RePaint); each costs as much time again, for more harmony between the levels.
            jump_length: steps of such a stretch.
            exact_consistency: return the nearest pictures whose averages are exactly the given ones.
            eta: 0 for DDIM to 1 for ancestral sampling.
            generator: one, or one a picture: the same seed then gives the same picture in any batch.
            latents: noise N(0, 1) for every level, innermost first; the known levels take theirs from it too.
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
            output_pyramid: also return the pictures of the dolls inside: the given ones, and those between.
            return_dict: False returns a tuple `(images,)`, or `(images, pyramid)` with `output_pyramid`.
            cross_attention_kwargs: e.g. `{"scale": 0.5}`, the strength of a LoRA.
            callback_on_step_end: called after each step as `(pipeline, step, timestep, tensors)`; the tensors it
                returns replace those of the pipeline. Set `pipeline._interrupt = True` to stop.
            callback_on_step_end_tensor_inputs: which tensors it gets, of `_callback_tensor_inputs`;
                "pred_original_sample" is a preview of the finished pyramid in [-1, 1].
            max_sequence_length: longer prompts are cut, with a warning.

        Raises:
            ValueError: see `check_inputs` and `resolve_target`.
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
        given_height, given_width = pictures.pixels.shape[-2:]
        height, width = self.resolve_target((given_height, given_width), height, width)
        num_images = self.check_inputs(
            inputs,
            len(pictures.pixels),
            height,
            width,
            num_images_per_prompt,
            num_resampling_steps,
            jump_length,
            generator,
            latents,
            micro_conditioning,
            output_type,
            callback_on_step_end_tensor_inputs,
        )
        self.begin_drawing(guidance_scale, guidance_rescale, cross_attention_kwargs)
        device = self._execution_device

        # 1. What is asked for.
        conditioning, groups = self.encode_conditioning(inputs, num_images, max_sequence_length)

        # 2. Time steps, noise of all levels, the truth of the known ones.
        schedule = self.retrieve_timesteps(num_inference_steps, device, timesteps)
        noise = self.prepare_noise(num_images, height, width, self.sample_dtype, device, generator, latents)
        known = self.know_pictures(pictures, noise)
        drawing = Drawing(
            conditioning,
            groups,
            self.prepare_micro_conditioning(micro_conditioning, num_images, device),
            self.prepare_extra_step_kwargs(generator, eta),
            callback_on_step_end,
            callback_on_step_end_tensor_inputs,
            generator,
            known,
            average=known.clean[-1] if self.vae is None else None,
        )

        # 3. Denoise the outer levels beside the known ones.
        positions = resampled_positions(len(schedule), num_resampling_steps, jump_length)
        start = self.hold_known(self.as_sample(noise), schedule[0], drawing)
        levels = self.denoise(start, schedule, drawing, positions)

        # 4. Pictures.
        make_consistent = functools.partial(
            self.make_consistent,
            average=2 * known.pixels[-1] - 1,
            eight_bit=pictures.is_eight_bit or output_type == "pil",
        )
        refine = make_consistent if exact_consistency else None
        return self.finish_drawing(levels, output_type, output_pyramid, return_dict, known, refine)
