# SPDX-License-Identifier: Apache-2.0
"""Text-to-video and class-conditional video generation."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch

from diffusers_mdm.models import NestedUNetModel
from diffusers_mdm.pipelines.drawing.class_labels import ClassLabels
from diffusers_mdm.pipelines.drawing.inner_first import denoise_inner_first
from diffusers_mdm.pipelines.drawing.loop import denoise
from diffusers_mdm.pipelines.drawing.request import Guider, Request, Sample, StepCallback, read_call
from diffusers_mdm.pipelines.drawing.setup import begin_drawing, scaled_noise, set_timesteps, starting_noise
from diffusers_mdm.pipelines.pipeline_class_base import ClassPipelineBase
from diffusers_mdm.pipelines.pipeline_output import MDMVideoPipelineOutput
from diffusers_mdm.pyramid import as_pyramid


class MDMVideoPipeline(ClassPipelineBase):
    """Pipeline for video generation with a model whose levels have frames, and can be nested in time as in space.

    Args:
        unet: the model, with `num_frames`, conditioned on texts, classes or both.
        scheduler: `MatryoshkaScheduler`, or one of diffusers' schedulers to generate a single level.
        text_encoder: as in `MDMPipeline`; None for a class-conditional model.
        tokenizer: its tokenizer.
        vae: for a model on latents; see `MDMPipeline`.
        id2label: class names by number; see `MDMClassConditionalPipeline`.
        drawing_defaults: default settings that suit the model; see `MDMPipeline`.
    """

    _output_class = MDMVideoPipelineOutput

    def resolve_size(self, request: Request) -> None:
        """Fill in height, width and number of frames: the given ones, those of given noise, or those of the largest
        level.

        Args:
            request: the request; if only one of height and width is given, frames are square; if only the number of
                frames is given, the outermost level with this number is used.

        Raises:
            ValueError: the noise is not for clips, or no level has such clips.
        """
        height, width, num_frames, latents = request.height, request.width, request.num_frames, request.latents
        if latents is not None and len(latents) and height is None and width is None:
            outermost, factor = as_pyramid(latents)[0][-1], self.vae_scale_factor
            if outermost.ndim != 5:
                raise ValueError(
                    f"`latents` has a level of shape {tuple(outermost.shape)}; expected noise of clips, (batch, "
                    "channels, frames, height, width)."
                )
            request.height, request.width = outermost.shape[-2] * factor, outermost.shape[-1] * factor
            request.num_frames = num_frames or outermost.shape[2]
            height, width, num_frames = request.height, request.width, request.num_frames
        sides, frames = self.image_sides, self.unet.level_frames
        side = None if height is None and width is None else max(height or 0, width or 0)
        fitting = [
            index
            for index in range(len(sides))
            if side in (None, sides[index]) and num_frames in (None, *self._possible_frames(index + 1))
        ]
        if not fitting:
            levels = ", ".join(
                f"{count} frames of {length} pixels" for count, length in zip(frames, sides, strict=True)
            )
            asked = " and ".join(
                f"{count} {unit}" for count, unit in ((num_frames, "frames"), (side, "pixels")) if count is not None
            )
            raise ValueError(
                f"No level of this model has clips of {asked}: it has {levels} (larger side), innermost first. "
                "Choose `num_frames`, `height` and `width` of one of them."
            )
        level = fitting[-1]
        request.height, request.width = height or width or sides[level], width or height or sides[level]
        request.num_frames = num_frames or frames[level]

    def _possible_frames(self, num_levels: int) -> set[int]:
        """Return the possible numbers of frames for this number of levels: also 1 if no level resamples frames."""
        frames = self.unet.level_frames[:num_levels]
        return {frames[-1], 1} if len(set(frames)) == 1 else {frames[-1]}

    @torch.no_grad()
    def __call__(
        self,
        prompt: str | list[str] | None = None,
        height: int | None = None,
        width: int | None = None,
        num_frames: int | None = None,
        num_inference_steps: int | None = None,
        timesteps: Sequence[int] | None = None,
        guidance_scale: float | Sequence[float] | None = None,
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
        guider: Guider = None,
        guidance_unet: NestedUNetModel | None = None,
        level_agreement: float | Sequence[float] | None = None,
        open_levels_at: float | None = None,
        num_inner_steps: int | Sequence[int] | None = None,
    ) -> MDMVideoPipelineOutput | tuple[Any, ...]:
        """Generate clips for prompts or classes.

        A clip depends only on its own prompt, noise and generator, not on the batch it is generated in.

        Args:
            prompt: one text or a list of them, for a model with text.
            height: pixels; with `width` and `num_frames` it selects how many levels are generated: the larger one must
                be the side of a level with this number of frames. By default all levels are generated.
            width: pixels.
            num_frames: frames of the clips; 1 generates images, with a model whose levels have equal numbers of
                frames.
            num_inference_steps: number of denoising steps. Default: the pipeline's `drawing_defaults`, otherwise 50.
            timesteps: custom timesteps in decreasing order, in 0 … num_train_timesteps - 1.
            guidance_scale: guidance scale w, one for all levels or one per level, innermost first; 1 or less turns
                guidance off. Default: the pipeline's `drawing_defaults`, otherwise 7.5.
            negative_prompt: prompt for the unconditional prediction of guidance: a text if `prompt` is one, a list if
                it is a list; empty by default.
            num_videos_per_prompt: clips per prompt or label.
            eta: 0 for DDIM to 1 for ancestral sampling.
            generator: one generator, or one per clip: the same seed then gives the same clip in any batch.
            latents: starting noise N(0, 1): levels `(B, C, F_i, H_i, W_i)`, innermost first, or a tensor for a single
                level.
            prompt_embeds: text features `(B, L, width)` from `encode_prompt`, instead of `prompt`.
            negative_prompt_embeds: the same shape, instead of `negative_prompt`.
            prompt_attention_mask: `(B, L)`, True where `prompt_embeds` has a token; None means everywhere.
            negative_prompt_attention_mask: the same for `negative_prompt_embeds`.
            class_labels: class numbers or names, for a model with classes.
            negative_class_labels: class for the unconditional prediction of guidance; the null class by default.
            micro_conditioning: e.g. `{"scale": 256}`; one number, one per clip, or two per clip (those of the
                unconditional half of the batch first). Missing ones have the model's defaults.
            guidance_rescale: 0 to 1, rescales the standard deviation of each level towards that of the unguided
                prediction (arXiv:2305.08891).
            output_type: "pil" (a list of images for each clip), "np" (`(B, F, H, W, C)` in [0, 1]), "pt" (`(B, F, C,
                H, W)` in [0, 1]) or "latent" (the last sample `(B, C, F, H, W)`, not clipped). The first two are what
                diffusers' `export_to_video` takes, clip by clip.
            output_pyramid: also return the clips of the inner levels.
            return_dict: False returns a tuple `(frames,)`, or `(frames, pyramid)` with `output_pyramid`.
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
                it in `num_inference_steps`; a list generates one level after another, innermost first. The finished
                level is kept: outer levels average down to it, and have its frames among theirs. Callbacks are called
                for these drawings one after another. Default: the pipeline's `drawing_defaults`, otherwise all levels
                are generated together.

        Raises:
            ValueError: see `check_inputs` and `resolve_size`.
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
