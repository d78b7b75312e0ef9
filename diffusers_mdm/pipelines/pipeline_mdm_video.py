# SPDX-License-Identifier: Apache-2.0
"""Text, or class, to video: clips at every number of frames and every size of the model at once."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch

from diffusers_mdm.models import NestedUNetModel
from diffusers_mdm.pipelines.drawing.class_labels import ClassLabels
from diffusers_mdm.pipelines.drawing.loop import denoise
from diffusers_mdm.pipelines.drawing.request import Guider, Request, Sample, StepCallback, read_call
from diffusers_mdm.pipelines.drawing.setup import begin_drawing, scaled_noise, set_timesteps, starting_noise
from diffusers_mdm.pipelines.pipeline_class_base import ClassPipelineBase
from diffusers_mdm.pipelines.pipeline_output import MDMVideoPipelineOutput
from diffusers_mdm.pyramid import as_pyramid


class MDMVideoPipeline(ClassPipelineBase):
    """Draw clips with a model whose levels have frames, nested in time as in space.

    Args:
        unet: the model, with `num_frames`, conditioned on texts, classes or both.
        scheduler: `MatryoshkaScheduler`, or one of diffusers' where a single level is drawn.
        text_encoder: as in `MDMPipeline`; None for a model of classes.
        tokenizer: its tokenizer.
        vae: for a model of latents, see `MDMPipeline`.
        id2label: names of the classes by number, see `MDMClassConditionalPipeline`.
        drawing_defaults: settings that suit the model, see `MDMPipeline`.
    """

    _output_class = MDMVideoPipelineOutput

    def resolve_size(self, request: Request) -> None:
        """Fill in height, width and frames: the given ones, those of given noise, or of the largest level.

        Args:
            request: one of height and width alone means a square; frames alone mean the outermost level with so many.

        Raises:
            ValueError: the noise is not of clips, or no level draws such clips.
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
        sides, frames = self.picture_sides, self.unet.level_frames
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
                f"No level of this model draws clips of {asked}: it has {levels} (larger side), innermost first. "
                "Choose `num_frames`, `height` and `width` of one of them."
            )
        level = fitting[-1]
        request.height, request.width = height or width or sides[level], width or height or sides[level]
        request.num_frames = num_frames or frames[level]

    def _possible_frames(self, num_levels: int) -> set[int]:
        """Frames that the outermost of so many levels draws: single ones too where no level resamples frames."""
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
    ) -> MDMVideoPipelineOutput | tuple[Any, ...]:
        """Draw clips for prompts or classes.

        A clip depends on its own prompt, noise and generator, not on the batch it is drawn in.

        Args:
            prompt: one text or a list of them, for a model of texts.
            height: pixels; with `width` and `num_frames` it chooses how many levels are drawn: the larger one has to
                be a level's side, with the level's number of frames. By default all levels are drawn.
            width: pixels.
            num_frames: frames of the clips; 1 draws still pictures with a model whose levels have equally many frames.
            num_inference_steps: number of denoising steps. By default what the pipeline's folder says suits its model
                (`drawing_defaults`), else 50.
            timesteps: the time steps themselves, descending, in 0 … num_train_timesteps - 1.
            guidance_scale: w of the guidance, one for all levels or one a level, innermost first; 1 or less turns it
                off. By default what the pipeline's folder says, else 7.5.
            negative_prompt: what guidance pushes away from: one text for a text, a list for a list; empty by default.
            num_videos_per_prompt: clips of each prompt or label.
            eta: 0 for DDIM to 1 for ancestral sampling.
            generator: one, or one a clip: the same seed then gives the same clip in any batch.
            latents: starting noise N(0, 1): levels `(B, C, F_i, H_i, W_i)`, innermost first, or a tensor where one
                level is drawn.
            prompt_embeds: `(B, L, width)` from `encode_prompt`, in place of `prompt`.
            negative_prompt_embeds: the same shape, in place of `negative_prompt`.
            prompt_attention_mask: `(B, L)`, True where `prompt_embeds` has a token; None says everywhere.
            negative_prompt_attention_mask: the same for `negative_prompt_embeds`.
            class_labels: numbers or names, for a model of classes.
            negative_class_labels: what guidance pushes away from; the null class by default.
            micro_conditioning: e.g. `{"scale": 256}`; one number, one a clip, or two a clip (those of the
                unconditional half of the batch first). What is missing takes the model's own value.
            guidance_rescale: 0 to 1, brings each level's spread back to that of the unguided prediction
                (arXiv:2305.08891).
            output_type: "pil" (a list of pictures for each clip), "np" (`(B, F, H, W, C)` in [0, 1]), "pt"
                (`(B, F, C, H, W)` in [0, 1]) or "latent" (the last sample `(B, C, F, H, W)`, not clipped). The first
                two are what diffusers' `export_to_video` takes, clip by clip.
            output_pyramid: also return the clips of the levels inside.
            return_dict: False returns a tuple `(frames,)`, or `(frames, pyramid)` with `output_pyramid`.
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
            ValueError: see `check_inputs` and `resolve_clip`.
            TypeError: `prompt` and `negative_prompt` are of different types.
        """
        request = read_call(locals())
        self.check_inputs(request)
        with begin_drawing(self, request) as drawing:
            self.encode_conditions(drawing)
            set_timesteps(drawing)
            start = scaled_noise(drawing.scheduler, starting_noise(drawing))
            return self.finish_drawing(drawing, denoise(drawing, start))
