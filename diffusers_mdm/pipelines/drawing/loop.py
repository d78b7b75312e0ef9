# SPDX-License-Identifier: Apache-2.0
"""The sampling loop of a drawing: guided predictions, reverse steps, known pixels, callbacks, and the output."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch

from diffusers_mdm.pipelines.drawing.callbacks import call_back
from diffusers_mdm.pipelines.drawing.consistency import project_prediction
from diffusers_mdm.pipelines.drawing.guidance.prediction import predict
from diffusers_mdm.pipelines.drawing.known_pixels import KnownPixels
from diffusers_mdm.pipelines.drawing.latent_space import decode_latents
from diffusers_mdm.pipelines.drawing.open_levels import LevelOpening
from diffusers_mdm.pipelines.drawing.request import Sample
from diffusers_mdm.pipelines.drawing.resampling import diffuse_from
from diffusers_mdm.pipelines.drawing.setup import Drawing, noised, step_arguments
from diffusers_mdm.pipelines.pipeline_output import Images
from diffusers_mdm.pyramid import Pyramid, as_pyramid, pyramid_noise
from diffusers_mdm.schedulers import MatryoshkaScheduler

Refine = Callable[[Pyramid], Pyramid]


def denoise(drawing: Drawing, latents: Sample) -> Sample:
    """Denoise all levels together, step by step.

    Args:
        drawing: the drawing, with its timesteps and everything else that the steps share.
        latents: samples at the first timestep, B per level.

    Returns:
        The samples after the last step, or at the step where a callback interrupted the drawing.
    """
    scheduler, timesteps, positions = drawing.scheduler, drawing.timesteps, drawing.positions
    times, step_kwargs = step_times(drawing), step_arguments(drawing)
    magnitudes: list[torch.Tensor] = []
    drawing.controls.num_timesteps = len(positions)
    opening = LevelOpening.of(drawing, latents) if drawing.request.open_levels_at > -math.inf else None
    reached = 0
    with drawing.pipeline.progress_bar(total=len(positions)) as progress_bar:
        for step, position in enumerate(positions):
            if drawing.controls.interrupt:
                continue
            timestep = timesteps[position]
            if position < reached:
                latents = go_back(drawing, latents, timesteps[reached], timestep)
            reached = position + 1
            if opening is not None:
                latents = hold_known(drawing, opening.opened(latents, position), timestep)
            running = latents if opening is None else opening.running(latents, position)
            drawing.position = position
            prediction = predict(drawing, scheduler.scale_model_input(running, timestep), timestep, step)
            magnitudes.append(largest_magnitudes(prediction))
            if drawing.average is not None:
                prediction = project_prediction(
                    scheduler, as_pyramid(prediction)[0], as_pyramid(running)[0], timestep, drawing.average
                )
            step_output = scheduler.step(prediction, times[position], running, **step_kwargs)
            stepped, preview = step_output.prev_sample, getattr(step_output, "pred_original_sample", None)
            if opening is not None:
                stepped, preview = opening.beside_waiting(stepped, latents), opening.preview(preview, latents)
            later = timesteps[reached] if reached < len(timesteps) else None
            latents, preview = hold_known(drawing, stepped, later), hold_known(drawing, preview, None)
            if drawing.request.callback_on_step_end is not None:
                latents = call_back(drawing, step, timestep, latents, preview)
            progress_bar.update()
    check_predictions(magnitudes, [int(times[position]) for position in positions])
    return latents


def step_times(drawing: Drawing) -> Sequence[Any]:
    """Return the timesteps in the form that the scheduler's `step` takes.

    For our scheduler they are numbers, so that no step waits for the accelerator; for those of diffusers they are
    tensors, which some of them require.
    """
    if isinstance(drawing.scheduler, MatryoshkaScheduler):
        return drawing.timesteps.tolist()
    return list(drawing.timesteps)


def hold_known(drawing: Drawing, sample: Any, timestep: torch.Tensor | None) -> Any:
    """Replace known pixels by the given ones with noise added.

    Args:
        drawing: the drawing, with its known pixels.
        sample: samples at `timestep`, or None.
        timestep: t; None for clean images.
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
    """Add noise to the samples again, and replace known pixels.

    Args:
        drawing: the drawing.
        latents: samples at `timestep`.
        timestep: s.
        back_to: t, above s.
    """
    levels = as_pyramid(latents)[0]
    shapes = [level.shape for level in levels]
    noise = pyramid_noise(shapes, drawing.request.generator, levels[0].device, levels[0].dtype)
    return hold_known(drawing, diffuse_from(drawing.scheduler, latents, noise, timestep, back_to), back_to)


# Output


def finish(
    drawing: Drawing, latents: Sample, known: KnownPixels | None = None, refine: Refine | None = None
) -> list[Images]:
    """Convert the last samples to images or clips: of all levels with `output_pyramid`, otherwise of the outermost
    one.

    Args:
        drawing: the drawing, whose request determines the output type.
        latents: the last samples.
        known: known pixels, which are returned exactly as given.
        refine: modifies the images of all levels, about in [-1, 1], before they are clipped.

    Raises:
        ValueError: the result contains NaN or infinity.
    """
    levels, request = as_pyramid(latents)[0], drawing.request
    check_finite(levels, f"The last samples of {type(drawing.scheduler).__name__} hold")
    if not request.output_pyramid:
        known = None if known is None else known.of_level(len(levels) - 1)
        levels = levels[-1:]
    if levels[0].ndim == 5:
        return clips(drawing.pipeline, levels, request.output_type)
    return images(drawing.pipeline, levels, request.output_type, known, refine)


def images(
    pipeline: Any,
    levels: Pyramid,
    output_type: str,
    known: KnownPixels | None = None,
    refine: Refine | None = None,
) -> list[Images]:
    """Convert the last samples to images, one entry per level, innermost first.

    Args:
        pipeline: the pipeline, whose autoencoder, if any, decodes, and whose `image_processor` converts.
        levels: the last samples, about in [-1, 1], which are clipped here.
        output_type: "pil", "np" (`(B, H, W, C)` in [0, 1]), "pt" (`(B, C, H, W)` in [0, 1]) or "latent" (the samples
            themselves, not clipped).
        known: known pixels, which are returned exactly as given.
        refine: see `finish`.
    """
    vae, processor = pipeline.vae, pipeline.image_processor
    if output_type == "latent":
        levels = levels if known is None else known.put_into_samples(levels, known.clean)
        return list(levels if refine is None or vae is not None else refine(levels))
    decoded = levels if vae is None else [decode_latents(vae, level) for level in levels]
    if vae is not None:
        check_finite(decoded, "The autoencoder decodes to")
    refined = decoded if refine is None else refine(decoded)
    tensors = [processor.postprocess(level.clamp(-1.0, 1.0), output_type="pt") for level in refined]
    if known is not None:
        tensors = known.put_into_images(tensors)
    if output_type == "pt":
        return list(tensors)
    arrays = [processor.pt_to_numpy(level) for level in tensors]
    return arrays if output_type == "np" else [processor.numpy_to_pil(level) for level in arrays]


def clips(
    pipeline: Any,
    levels: Pyramid,
    output_type: str,
) -> list[Any]:
    """Convert the last samples `(B, C, F, H, W)` to clips, one entry per level, innermost first.

    Args:
        pipeline: see `images`.
        levels: the last samples.
        output_type: "pil" (lists of images), "np" (`(B, F, H, W, C)` in [0, 1]), "pt" (`(B, F, C, H, W)` in [0, 1]) or
            "latent" (the samples themselves).
    """
    if output_type == "latent":
        return list(levels)
    made: list[Any] = []
    for level in levels:
        # Frames are converted like images.
        frames = images(pipeline, [level.transpose(1, 2).flatten(0, 1)], output_type)[0]
        num_frames = level.shape[2]
        if isinstance(frames, list):
            made.append([frames[start : start + num_frames] for start in range(0, len(frames), num_frames)])
        else:
            made.append(frames.reshape(len(level), num_frames, *frames.shape[1:]))
    return made


def check_finite(levels: Pyramid, what: str) -> None:
    """Check that there is no NaN or infinity, which would otherwise be returned as black images.

    Args:
        levels: samples or images.
        what: beginning of the error message.
    """
    # One result for all levels, so that this waits for the accelerator only once.
    finite = torch.stack([torch.isfinite(level).all() for level in levels])
    if not bool(finite.all()):
        raise ValueError(
            f"{what} NaN or infinity, so there is no image to return. Try float32 or bfloat16 if a model runs in "
            f"float16, more steps, or MatryoshkaScheduler if another scheduler was used; otherwise check the weights."
        )


def largest_magnitudes(prediction: Sample) -> torch.Tensor:
    """Return the largest magnitude in each level, `(R,)`, NaN or infinity if the level contains any, without waiting
    for it.
    """
    return torch.stack([torch.linalg.vector_norm(level, torch.inf) for level in as_pyramid(prediction)[0]])


def check_predictions(magnitudes: Sequence[torch.Tensor], timesteps: Sequence[int]) -> None:
    """Check that no prediction of any step had NaN or infinity, which thresholding may hide.

    Args:
        magnitudes: results of `largest_magnitudes` for each step.
        timesteps: timestep of each step.
    """
    if not magnitudes or bool(torch.cat(list(magnitudes)).isfinite().all()):
        return
    step = next(step for step, largest in enumerate(magnitudes) if not bool(largest.isfinite().all()))
    levels = (~magnitudes[step].isfinite()).nonzero().flatten().tolist()
    raise ValueError(
        f"The model predicted NaN or infinity at timestep {timesteps[step]}, level {', '.join(map(str, levels))} (0 = "
        "innermost). Try float32 or bfloat16 if it runs in float16; otherwise look at its weights and inputs."
    )
