# SPDX-License-Identifier: Apache-2.0
"""Text, or class, to video: clips at every number of frames and every size of the model at once."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, cast

import torch
from diffusers.callbacks import MultiPipelineCallbacks, PipelineCallback

from diffusers_mdm.pipelines.drawing.class_labels import ClassLabels
from diffusers_mdm.pipelines.drawing.conditioning import ConditionInputs
from diffusers_mdm.pipelines.drawing.known_pixels import KnownPixels
from diffusers_mdm.pipelines.drawing.loop import Drawing, Sample, StepCallback
from diffusers_mdm.pipelines.pipeline_class_base import ClassPipelineBase
from diffusers_mdm.pipelines.pipeline_output import Images, MDMVideoPipelineOutput
from diffusers_mdm.pyramid import Pyramid, as_pyramid


class MDMVideoPipeline(ClassPipelineBase):
    """Draw clips with a model whose levels have frames, nested in time as in space.

    Args:
        unet: the dolls, with `num_frames`; conditioned on texts, classes or both.
        scheduler: `MatryoshkaScheduler`, or one of the host's where a single doll is opened.
        text_encoder: as in `MDMPipeline`; None for a model of classes.
        tokenizer: its tokenizer.
        vae: for a model of latents, see `MDMPipeline`.
        id2label: names of the classes by number, see `MDMClassConditionalPipeline`.
    """

    def resolve_clip(
        self, height: int | None, width: int | None, num_frames: int | None, latents: Sample | None
    ) -> tuple[int, int, int]:
        """Give height and width in pixels, and frames: the given ones, those of given noise, or of the largest doll.

        Args:
            height: alone it means a square.
            width: alone it means a square.
            num_frames: alone it means the outermost doll with so many frames.
            latents: starting noise, innermost level first.

        Raises:
            ValueError: the noise is not of clips, or no doll draws such clips.
        """
        if latents is not None and len(as_pyramid(latents)[0]) and height is None and width is None:
            outermost, factor = as_pyramid(latents)[0][-1], self.vae_scale_factor
            if outermost.ndim != 5:
                raise ValueError(
                    f"`latents` has a level of shape {tuple(outermost.shape)}; expected noise of clips, (batch, "
                    "channels, frames, height, width)."
                )
            return outermost.shape[-2] * factor, outermost.shape[-1] * factor, num_frames or outermost.shape[2]
        sides, frames = self.picture_sides, self.unet.level_frames
        side = None if height is None and width is None else max(height or 0, width or 0)
        fitting = [
            index
            for index in range(len(sides))
            if side in (None, sides[index]) and num_frames in (None, *self._possible_frames(index + 1))
        ]
        if not fitting:
            dolls = ", ".join(
                f"{count} frames of {length} pixels" for count, length in zip(frames, sides, strict=True)
            )
            asked = " and ".join(
                f"{count} {unit}" for count, unit in ((num_frames, "frames"), (side, "pixels")) if count is not None
            )
            raise ValueError(
                f"No doll of this model draws clips of {asked}: it has {dolls} (larger side), innermost first. Choose "
                "`num_frames`, `height` and `width` of one of them."
            )
        level = fitting[-1]
        return height or width or sides[level], width or height or sides[level], num_frames or frames[level]

    def _possible_frames(self, num_levels: int) -> set[int]:
        """Frames that the outermost of so many levels draws: single ones too where no level resamples frames."""
        frames = self.unet.level_frames[:num_levels]
        return {frames[-1], 1} if len(set(frames)) == 1 else {frames[-1]}

    def check_inputs(
        self,
        inputs: ConditionInputs,
        height: int,
        width: int,
        num_frames: int,
        num_videos_per_prompt: int = 1,
        generator: torch.Generator | list[torch.Generator] | None = None,
        latents: Sample | None = None,
        micro_conditioning: Mapping[str, Any] | None = None,
        output_type: str = "pil",
        callback_on_step_end_tensor_inputs: Sequence[str] | None = None,
    ) -> int:
        """Refuse what cannot be drawn before anything is computed. Arguments as in `__call__`.

        Returns:
            B, the number of clips to draw.

        Raises:
            ValueError: says what was wrong, what was expected and what to do.
            TypeError: `prompt` and `negative_prompt` are of different types.
        """
        num_videos = self.check_batch(
            inputs, {}, num_videos_per_prompt, output_type, callback_on_step_end_tensor_inputs, "num_videos_per_prompt"
        )
        self.check_size_and_noise(num_videos, height, width, generator, latents, micro_conditioning, num_frames)
        return num_videos

    def postprocess(
        self,
        latents: Sample,
        output_type: str,
        known: KnownPixels | None = None,
        refine: Callable[[Pyramid], Pyramid] | None = None,
    ) -> list[Images]:
        """Turn the last samples into clips, one entry a level, innermost first.

        Args:
            latents: the last samples `(B, C, F, H, W)`.
            output_type: "pil" (lists of pictures), "np" (`(B, F, H, W, C)` in [0, 1]), "pt" (`(B, F, C, H, W)` in
                [0, 1]) or "latent" (the samples as they are).
            known: of no use here.
            refine: of no use here.
        """
        levels = as_pyramid(latents)[0]
        if output_type == "latent":
            return list(levels)
        clips: list[Images] = []
        for level in levels:
            # Frames are pictures to the code that finishes pictures.
            pictures = super().postprocess(level.transpose(1, 2).flatten(0, 1), output_type)[0]
            num_frames = level.shape[2]
            if isinstance(pictures, list):
                starts = range(0, len(pictures), num_frames)
                clips.append(cast(Images, [pictures[start : start + num_frames] for start in starts]))
            else:
                clips.append(pictures.reshape(len(level), num_frames, *pictures.shape[1:]))
        return clips

    @torch.no_grad()
    def __call__(
        self,
        prompt: str | list[str] | None = None,
        height: int | None = None,
        width: int | None = None,
        num_frames: int | None = None,
        num_inference_steps: int = 50,
        timesteps: Sequence[int] | None = None,
        guidance_scale: float = 7.5,
        negative_prompt: str | list[str] | None = None,
        num_videos_per_prompt: int = 1,
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
    ) -> MDMVideoPipelineOutput | tuple[Any, ...]:
        """Draw clips for prompts or classes.

        A clip depends on its own prompt, noise and generator, not on the batch it is drawn in.

        Args:
            prompt: one text or a list of them, for a model of texts.
            height: pixels; with `width` and `num_frames` it chooses how many dolls are opened: the larger one has to
                be a doll's side, with the doll's number of frames. By default the outermost doll is drawn.
            width: pixels.
            num_frames: frames of the clips; 1 draws still pictures with a model whose levels have equally many frames.
            num_inference_steps: number of denoising steps.
            timesteps: the time steps themselves, descending, in 0 … num_train_timesteps - 1.
            guidance_scale: w of classifier-free guidance, at every level; 1 or less turns it off.
            negative_prompt: what guidance pushes away from: one text for a text, a list for a list; empty by default.
            num_videos_per_prompt: clips of each prompt or label.
            eta: 0 for DDIM to 1 for ancestral sampling.
            generator: one, or one a clip: the same seed then gives the same clip in any batch.
            latents: starting noise N(0, 1): levels `(B, C, F_i, H_i, W_i)`, innermost first, or a tensor where one
                doll is opened.
            prompt_embeds: `(B, L, width)` from `encode_prompt`, in place of `prompt`.
            negative_prompt_embeds: the same shape, in place of `negative_prompt`.
            prompt_attention_mask: `(B, L)`, True where `prompt_embeds` has a token; None says everywhere.
            negative_prompt_attention_mask: the same for `negative_prompt_embeds`.
            class_labels: numbers or names, for a model of classes.
            negative_class_labels: what guidance pushes away from; the null class by default.
            micro_conditioning: e.g. `{"scale": 256}`; one number, one a clip, or two a clip (those of the
                unconditional rows first). What is missing takes the model's own value.
            guidance_rescale: 0 to 1, brings each level's spread back to that of the unguided prediction
                (arXiv:2305.08891).
            output_type: "pil" (a list of pictures for each clip), "np" (`(B, F, H, W, C)` in [0, 1]), "pt"
                (`(B, F, C, H, W)` in [0, 1]) or "latent" (the last sample `(B, C, F, H, W)`, not clipped). The first
                two are what the host's `export_to_video` takes, clip by clip.
            output_pyramid: also return the clips of the dolls inside.
            return_dict: False returns a tuple `(frames,)`, or `(frames, pyramid)` with `output_pyramid`.
            cross_attention_kwargs: e.g. `{"scale": 0.5}`, the strength of a LoRA.
            callback_on_step_end: called after each step as `(pipeline, step, timestep, tensors)`; the tensors it
                returns replace those of the pipeline. Set `pipeline._interrupt = True` to stop.
            callback_on_step_end_tensor_inputs: which tensors it gets, of `_callback_tensor_inputs`;
                "pred_original_sample" is a preview of the finished pyramid in [-1, 1] (None with host schedulers that
                do not tell).
            max_sequence_length: longer prompts are cut, with a warning.

        Raises:
            ValueError: see `check_inputs` and `resolve_clip`.
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
        height, width, num_frames = self.resolve_clip(height, width, num_frames, latents)
        num_videos = self.check_inputs(
            inputs,
            height,
            width,
            num_frames,
            num_videos_per_prompt,
            generator,
            latents,
            micro_conditioning,
            output_type,
            callback_on_step_end_tensor_inputs,
        )
        self.begin_drawing(guidance_scale, guidance_rescale, cross_attention_kwargs)
        device = self._execution_device

        # 1. What is asked for.
        conditioning, groups = self.encode_conditioning(inputs, num_videos, max_sequence_length)

        # 2. Time steps, starting noise, everything else a step needs.
        schedule = self.retrieve_timesteps(num_inference_steps, device, timesteps)
        start = self.prepare_latents(
            num_videos, height, width, self.sample_dtype, device, generator, latents, num_frames
        )
        drawing = Drawing(
            conditioning,
            groups,
            self.prepare_micro_conditioning(micro_conditioning, num_videos, device),
            self.prepare_extra_step_kwargs(generator, eta),
            callback_on_step_end,
            callback_on_step_end_tensor_inputs,
        )

        # 3. Denoise all levels together.
        levels = self.denoise(start, schedule, drawing)

        # 4. Clips.
        finished = self.finish_drawing(levels, output_type, output_pyramid, return_dict=False)
        if not return_dict:
            return cast(tuple[Any, ...], finished)
        return MDMVideoPipelineOutput(*cast(tuple[Any, ...], finished))
