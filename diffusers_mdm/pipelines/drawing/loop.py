# SPDX-License-Identifier: Apache-2.0
"""One drawing, step by step: guided predictions, reverse steps, what is given of the pictures, callbacks."""

from __future__ import annotations

from typing import Any

import torch

from diffusers_mdm.pipelines.drawing.callbacks import call_back
from diffusers_mdm.pipelines.drawing.consistency import project_prediction
from diffusers_mdm.pipelines.drawing.guidance import predict
from diffusers_mdm.pipelines.drawing.request import Sample
from diffusers_mdm.pipelines.drawing.resampling import diffuse_from
from diffusers_mdm.pipelines.drawing.setup import Drawing, noised, step_arguments
from diffusers_mdm.pyramid import as_pyramid, pyramid_noise


def denoise(drawing: Drawing, latents: Sample) -> Sample:
    """Denoise all levels together, step by step.

    Args:
        drawing: its time steps, and everything else that the steps share.
        latents: samples at the first of the time steps, B a level.

    Returns:
        The samples after the last step, or where a callback interrupted the drawing.
    """
    scheduler, timesteps, positions = drawing.scheduler, drawing.timesteps, drawing.positions
    step_kwargs = step_arguments(drawing)
    drawing.controls.num_timesteps = len(positions)
    reached = 0
    with drawing.pipeline.progress_bar(total=len(positions)) as progress_bar:
        for step, position in enumerate(positions):
            if drawing.controls.interrupt:
                continue
            timestep = timesteps[position]
            if position < reached:
                latents = go_back(drawing, latents, timesteps[reached], timestep)
            reached = position + 1
            prediction = predict(drawing, scheduler.scale_model_input(latents, timestep), timestep)
            if drawing.average is not None:
                prediction = project_prediction(
                    scheduler, as_pyramid(prediction)[0], as_pyramid(latents)[0], timestep, drawing.average
                )
            step_output = scheduler.step(prediction, timestep, latents, **step_kwargs)
            later = timesteps[reached] if reached < len(timesteps) else None
            latents = hold_known(drawing, step_output.prev_sample, later)
            preview = hold_known(drawing, getattr(step_output, "pred_original_sample", None), None)
            if drawing.request.callback_on_step_end is not None:
                latents = call_back(drawing, step, timestep, latents, preview)
            progress_bar.update()
    return latents


def hold_known(drawing: Drawing, sample: Any, timestep: torch.Tensor | None) -> Any:
    """Replace what is known of the pictures by its noised truth.

    Args:
        drawing: knows what is known.
        sample: samples at `timestep`, or None.
        timestep: t; None for clean pictures.
    """
    known = drawing.known
    if known is None or sample is None:
        return sample
    levels, bare = as_pyramid(sample)
    truth = known.clean
    if timestep is not None:
        truth = noised(drawing, truth, known.noise, timestep, bare=bare)
    held = known.put_into_samples(levels, truth)
    return held[0] if bare else held


def go_back(drawing: Drawing, latents: Sample, timestep: torch.Tensor, back_to: torch.Tensor) -> Sample:
    """Put noise back into the samples, and the truth into what is known.

    Args:
        drawing: what the steps share.
        latents: samples at `timestep`.
        timestep: s.
        back_to: t, above s.
    """
    levels = as_pyramid(latents)[0]
    shapes = [level.shape for level in levels]
    noise = pyramid_noise(shapes, drawing.request.generator, levels[0].device, levels[0].dtype)
    return hold_known(drawing, diffuse_from(drawing.scheduler, latents, noise, timestep, back_to), back_to)
