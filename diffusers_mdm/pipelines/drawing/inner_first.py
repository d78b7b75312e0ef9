# SPDX-License-Identifier: Apache-2.0
"""Generating the inner levels first, in many cheap steps, and then the outer levels around them in few steps.

The inner levels determine the content of an image or clip, at a fraction of the cost of the outer levels. Once they
are finished, the outer levels are generated as `MDMUpscalePipeline` does for a given small image. If inner levels of a
clip have fewer frames, the outer ones contain these frames, and those between them are generated.
"""

from __future__ import annotations

from collections.abc import Sequence

from diffusers_mdm.pipelines.drawing.known_pixels import KnownPixels
from diffusers_mdm.pipelines.drawing.loop import denoise, hold_known
from diffusers_mdm.pipelines.drawing.request import Sample
from diffusers_mdm.pipelines.drawing.setup import Drawing, scaled_noise, set_timesteps
from diffusers_mdm.pyramid import Pyramid, as_pyramid, pyramid_noise


def denoise_inner_first(drawing: Drawing, noise: Pyramid) -> Sample:
    """Denoise the levels with `num_inner_steps` one after another, then all others together.

    Args:
        drawing: the drawing.
        noise: starting noise of every generated level.

    Returns:
        The last samples, as returned by `denoise`.
    """
    wanted = drawing.request.num_inner_steps or []
    num_steps_by_level = [wanted] if isinstance(wanted, int) else wanted
    for index, num_steps in enumerate(num_steps_by_level[: len(noise) - 1]):
        know_drawn(drawing, _denoise_alone(drawing, noise[: index + 1], num_steps))
    set_timesteps(drawing)
    return denoise(drawing, hold_known(drawing, scaled_noise(drawing.scheduler, noise), drawing.timesteps[0]))


def _denoise_alone(drawing: Drawing, noise: Sequence, num_steps: int) -> Pyramid:
    """Generate inner levels in `num_steps` steps, the outermost of them around the finished ones."""
    scheduler = drawing.scheduler
    scheduler.set_timesteps(num_steps, device=drawing.device)
    drawing.timesteps, drawing.positions = scheduler.timesteps, range(num_steps)
    start = [level * scheduler.init_noise_sigma for level in noise]
    return as_pyramid(denoise(drawing, hold_known(drawing, start, drawing.timesteps[0])))[0]


def know_drawn(drawing: Drawing, levels: Pyramid) -> None:
    """Keep finished levels fixed from now on.

    Args:
        drawing: receives the known pixels, and the averages for the outer levels.
        levels: the last samples of the inner levels.
    """
    request, is_pixels = drawing.request, drawing.pipeline.vae is None
    clean = [level.clamp(-1.0, 1.0) if is_pixels else level for level in levels]
    # The noise from which they were generated is correlated with them, so the noise added to them must be different.
    noise = pyramid_noise([level.shape for level in clean], request.generator, drawing.device, clean[0].dtype)
    drawing.known = KnownPixels.whole(clean, clean, noise)
    drawing.average = clean[-1] if is_pixels else None
    if request.guidance is not None:
        drawing.guidance = request.guidance.for_levels(drawing.pipeline.unet.num_levels)
