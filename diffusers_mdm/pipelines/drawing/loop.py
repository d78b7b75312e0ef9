# SPDX-License-Identifier: Apache-2.0
"""One drawing, step by step: guided predictions, reverse steps, callbacks, pictures."""

from __future__ import annotations

import operator
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import torch
from diffusers.callbacks import MultiPipelineCallbacks, PipelineCallback
from diffusers.image_processor import VaeImageProcessor

from diffusers_mdm.pipelines.drawing.conditioning import Conditioning, RowGroup
from diffusers_mdm.pipelines.drawing.consistency import project_prediction
from diffusers_mdm.pipelines.drawing.guidance import guide
from diffusers_mdm.pipelines.drawing.known_pixels import KnownPixels
from diffusers_mdm.pipelines.drawing.resampling import diffuse_from
from diffusers_mdm.pipelines.drawing.setup import DrawingSetupMixin, MicroConditioning, Sample
from diffusers_mdm.pipelines.pipeline_output import Images
from diffusers_mdm.pyramid import Pyramid, as_pyramid, pyramid_noise

StepCallback: TypeAlias = Callable[..., dict[str, Any]] | PipelineCallback | MultiPipelineCallbacks | None


def each_level(function: Callable[[torch.Tensor], torch.Tensor], sample: Sample) -> Sample:
    """Apply a function to every level; a bare tensor stays bare."""
    return function(sample) if isinstance(sample, torch.Tensor) else [function(level) for level in sample]


@dataclass
class Drawing:
    """What the steps of one drawing share.

    Attributes:
        conditioning: what the B rows are conditioned on; a callback may change it.
        groups: which rows may go through the model together.
        micro_conditioning: from `prepare_micro_conditioning`.
        step_kwargs: from `prepare_extra_step_kwargs`.
        callback: called after each step, see the pipelines' `callback_on_step_end`.
        callback_inputs: names of the tensors that the callback is given.
        generator: for noise that is put back in.
        known: what is given of the pictures, None for nothing.
        average: `(B, C, h, w)` in [-1, 1], what the predicted pictures have to average to, None for anything.
    """

    conditioning: Conditioning
    groups: list[RowGroup]
    micro_conditioning: MicroConditioning
    step_kwargs: dict[str, Any]
    callback: StepCallback = None
    callback_inputs: Sequence[str] = ()
    generator: torch.Generator | list[torch.Generator] | None = None
    known: KnownPixels | None = None
    average: torch.Tensor | None = None


class DenoisingMixin(DrawingSetupMixin):
    """What every MDM pipeline does between its inputs and its pictures."""

    image_processor: VaeImageProcessor
    progress_bar: Callable[..., Any]
    _guidance_scale: float = 1.0
    _guidance_rescale: float = 0.0
    _cross_attention_kwargs: dict[str, Any] | None = None
    _num_timesteps: int = 0
    _interrupt: bool = False

    @property
    def guidance_scale(self) -> float:
        """Weight w of the guidance at the current step; a callback may change `_guidance_scale`."""
        return self._guidance_scale

    @property
    def guidance_rescale(self) -> float:
        """How far the spread of the guided prediction is brought back to that of the conditional one, 0 to 1."""
        return self._guidance_rescale

    @property
    def do_classifier_free_guidance(self) -> bool:
        """Whether the model also runs without the prompt."""
        return self._guidance_scale > 1.0

    @property
    def cross_attention_kwargs(self) -> dict[str, Any] | None:
        """Given to the model at each step, e.g. `{"scale": 0.5}` for the strength of a LoRA."""
        return self._cross_attention_kwargs

    @property
    def num_timesteps(self) -> int:
        """Number of steps of the current or last drawing."""
        return self._num_timesteps

    @property
    def interrupt(self) -> bool:
        """Set `_interrupt` in a callback to skip the remaining steps."""
        return self._interrupt

    def denoise(
        self, latents: Sample, schedule: torch.Tensor, drawing: Drawing, positions: Sequence[int] | None = None
    ) -> Sample:
        """Denoise all levels together, step by step.

        Args:
            latents: samples at the first of the time steps, B rows a level.
            schedule: time steps, descending.
            drawing: what the steps share.
            positions: which time step each model call does, from `resampled_positions`; by default one after another.

        Returns:
            The samples after the last step, or where `interrupt` left them.
        """
        positions = range(len(schedule)) if positions is None else positions
        self._num_timesteps = len(positions)
        reached = 0
        with self.progress_bar(total=len(positions)) as progress_bar:
            for step, position in enumerate(positions):
                if self.interrupt:
                    continue
                timestep = schedule[position]
                if position < reached:
                    latents = self.go_back(latents, schedule[reached], timestep, drawing)
                reached = position + 1
                model_input = self.scheduler.scale_model_input(latents, timestep)
                prediction = self.predict(model_input, timestep, drawing)
                if drawing.average is not None:
                    prediction = project_prediction(
                        self.scheduler, as_pyramid(prediction)[0], as_pyramid(latents)[0], timestep, drawing.average
                    )
                step_output = self.scheduler.step(prediction, timestep, latents, **drawing.step_kwargs)
                later = schedule[reached] if reached < len(schedule) else None
                latents = self.hold_known(step_output.prev_sample, later, drawing)
                preview = self.hold_known(getattr(step_output, "pred_original_sample", None), None, drawing)
                latents = self.call_back(step, timestep, latents, preview, drawing)
                progress_bar.update()
        return latents

    def hold_known(self, sample: Any, timestep: torch.Tensor | None, drawing: Drawing) -> Any:
        """Replace what is known of the pictures by its noised truth.

        Args:
            sample: samples at `timestep`, or None.
            timestep: t; None for clean pictures.
            drawing: knows what is known.
        """
        known = drawing.known
        if known is None or sample is None:
            return sample
        levels, bare = as_pyramid(sample)
        truth = known.clean
        if timestep is not None:
            truth = self.noised(truth, known.noise, timestep, bare=bare)
        held = known.put_into_samples(levels, truth)
        return held[0] if bare else held

    def go_back(self, latents: Sample, timestep: torch.Tensor, back_to: torch.Tensor, drawing: Drawing) -> Sample:
        """Put noise back into the samples, and the truth into what is known.

        Args:
            latents: samples at `timestep`.
            timestep: s.
            back_to: t, above s.
            drawing: what the steps share.
        """
        levels = as_pyramid(latents)[0]
        shapes = [level.shape for level in levels]
        noise = pyramid_noise(shapes, drawing.generator, levels[0].device, levels[0].dtype)
        return self.hold_known(diffuse_from(self.scheduler, latents, noise, timestep, back_to), back_to, drawing)

    def call_back(
        self, step: int, timestep: torch.Tensor, latents: Sample, preview: Sample | None, drawing: Drawing
    ) -> Sample:
        """Give the callback the tensors it asked for, and take over what it returns.

        Args:
            step: how many steps were done before this one.
            timestep: of this step.
            latents: samples after this step.
            preview: the pictures as predicted at this step.
            drawing: its conditioning takes the changes.

        Returns:
            The samples, as the callback left them.
        """
        if drawing.callback is None:
            return latents
        known = {"latents": latents, "pred_original_sample": preview, **drawing.conditioning._asdict()}
        asked = {name: known[name] for name in drawing.callback_inputs}
        changed = drawing.callback(self, step, timestep, asked)
        fields = {name: changed[name] for name in Conditioning._fields if name in changed}
        drawing.conditioning = drawing.conditioning._replace(**fields)
        return changed.get("latents", latents)

    def predict(self, latents: Sample, timestep: torch.Tensor, drawing: Drawing) -> Sample:
        """Predict every opened level at once, guided where `guidance_scale` is above 1.

        Args:
            latents: what the scheduler made of the samples, B rows a level.
            timestep: one t for all rows.
            drawing: what the steps share.
        """
        conditioning, groups, micro = drawing.conditioning, drawing.groups, drawing.micro_conditioning
        if groups[0].rows is None:
            return self._predict_group(latents, timestep, conditioning, groups[0], micro)
        predictions = each_level(torch.empty_like, latents)
        for group in groups:
            part = self._predict_group(
                each_level(operator.itemgetter(group.rows), latents),
                timestep,
                conditioning.select(group),
                group,
                {key: value[:, group.rows] for key, value in micro.items()},
            )
            for whole, rows in zip(as_pyramid(predictions)[0], as_pyramid(part)[0], strict=True):
                whole[group.rows] = rows
        return predictions

    def _predict_group(
        self,
        latents: Sample,
        timestep: torch.Tensor,
        conditioning: Conditioning,
        group: RowGroup,
        micro_conditioning: MicroConditioning,
    ) -> Sample:
        guided = self.do_classifier_free_guidance
        innermost = as_pyramid(latents)[0][0]
        dtype, sample_dtype = self.unet.dtype, innermost.dtype
        prediction = self.unet(
            each_level(lambda level: (torch.cat([level, level]) if guided else level).to(dtype), latents),
            timestep.expand(2 * len(innermost) if guided else len(innermost)),
            **conditioning.model_inputs(guided=guided, has_pads=group.has_pads, dtype=dtype),
            added_cond_kwargs={
                key: value.flatten() if guided else value[1] for key, value in micro_conditioning.items()
            },
            cross_attention_kwargs=self.cross_attention_kwargs,
            return_dict=False,
        )[0]
        # Guidance multiplies rounding errors: it is done in the precision of the samples, not of the model.
        prediction = each_level(lambda level: level.to(sample_dtype), prediction)
        if not guided:
            return prediction
        w, rescale = self.guidance_scale, self.guidance_rescale
        return each_level(lambda level: guide(level.chunk(2)[0], level.chunk(2)[1], w, rescale), prediction)

    def postprocess(
        self,
        latents: Sample,
        output_type: str,
        known: KnownPixels | None = None,
        refine: Callable[[Pyramid], Pyramid] | None = None,
    ) -> list[Images]:
        """Turn the last samples into pictures, one entry a level, innermost first.

        Args:
            latents: the last samples; pictures are in [-1, 1] as the model got there, and clipped here.
            output_type: "pil", "np" (`(B, H, W, C)` in [0, 1]), "pt" (`(B, C, H, W)` in [0, 1]) or "latent" (the
                samples as they are, not clipped).
            known: pixels that come out as they were given, to the last bit.
            refine: changes the pictures of all levels, about in [-1, 1], before they are clipped.
        """
        levels = as_pyramid(latents)[0]
        if output_type == "latent":
            levels = levels if known is None else known.put_into_samples(levels, known.clean)
            return list(levels if refine is None or self.vae is not None else refine(levels))
        processor = self.image_processor
        pictures = [self.decode_latents(level) for level in levels]
        pictures = pictures if refine is None else refine(pictures)
        tensors = [processor.postprocess(level.clamp(-1.0, 1.0), output_type="pt") for level in pictures]
        if known is not None:
            tensors = known.put_into_pictures(tensors)
        if output_type == "pt":
            return list(tensors)
        arrays = [processor.pt_to_numpy(level) for level in tensors]
        return arrays if output_type == "np" else [processor.numpy_to_pil(level) for level in arrays]
