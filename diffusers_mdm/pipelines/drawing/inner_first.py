# SPDX-License-Identifier: Apache-2.0
"""The inner levels first, in as many steps as they want, then the outer ones around them, in few.

The inner levels decide what is in a picture, at a fraction of the outer levels' work. Once they are drawn, the outer
levels are drawn as `MDMUpscalePipeline` draws them around a small picture that is given.
"""

from __future__ import annotations

from collections.abc import Sequence

from diffusers_mdm.pipelines.drawing.known_pixels import KnownPixels
from diffusers_mdm.pipelines.drawing.loop import denoise, hold_known
from diffusers_mdm.pipelines.drawing.request import Sample
from diffusers_mdm.pipelines.drawing.setup import Drawing, scaled_noise, set_timesteps
from diffusers_mdm.pyramid import Pyramid, as_pyramid, pyramid_noise


def denoise_inner_first(drawing: Drawing, noise: Pyramid) -> Sample:
    """Denoise the levels for which the request has `num_inner_steps` one after another, then all others together.

    Args:
        drawing: what the steps share.
        noise: starting noise of every level that is drawn.

    Returns:
        The last samples, as `denoise` gives them.
    """
    wanted = drawing.request.num_inner_steps or []
    num_steps_by_level = [wanted] if isinstance(wanted, int) else wanted
    for index, num_steps in enumerate(num_steps_by_level[: len(noise) - 1]):
        know_drawn(drawing, _denoise_alone(drawing, noise[: index + 1], num_steps))
    set_timesteps(drawing)
    return denoise(drawing, hold_known(drawing, scaled_noise(drawing.scheduler, noise), drawing.timesteps[0]))


def _denoise_alone(drawing: Drawing, noise: Sequence, num_steps: int) -> Pyramid:
    """Draw inner levels in so many steps, the outermost of them around those that are known."""
    scheduler = drawing.scheduler
    scheduler.set_timesteps(num_steps, device=drawing.device)
    drawing.timesteps, drawing.positions = scheduler.timesteps, range(num_steps)
    start = [level * scheduler.init_noise_sigma for level in noise]
    return as_pyramid(denoise(drawing, hold_known(drawing, start, drawing.timesteps[0])))[0]


def know_drawn(drawing: Drawing, levels: Pyramid) -> None:
    """Take levels that are drawn as given from now on.

    Args:
        drawing: takes what is known, and the averages of the levels outside.
        levels: the last samples of the inner levels.
    """
    request, is_pixels = drawing.request, drawing.pipeline.vae is None
    clean = [level.clamp(-1.0, 1.0) if is_pixels else level for level in levels]
    # The noise that they were drawn from belongs to them: what is put over them has to be another.
    noise = pyramid_noise([level.shape for level in clean], request.generator, drawing.device, clean[0].dtype)
    drawing.known = KnownPixels.whole(clean, clean, noise)
    drawing.average = clean[-1] if is_pixels else None
    if request.guidance is not None:
        drawing.guidance = request.guidance.for_levels(drawing.pipeline.unet.num_levels)
