# SPDX-License-Identifier: Apache-2.0
"""Skipping outer levels while they are almost pure noise, which saves most of the work of the first steps.

The larger a level, the lower its log SNR at the same timestep. If that is far below 0, its sample contains no
information for the model, so the level need not run. It starts to run at the first step at which its log SNR reaches a
threshold. Its sample is then computed from the enlarged prediction of the inner level and the level's own starting
noise: at this noise level, the details that an enlarged image lacks are invisible.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch

from diffusers_mdm.pipelines.drawing.request import Sample
from diffusers_mdm.pipelines.drawing.setup import Drawing, noised
from diffusers_mdm.pyramid import Pyramid, as_pyramid, level_ratios
from diffusers_mdm.schedulers.level_agreement import enlarge


def log_snrs(scheduler: Any, sample: Sample, timestep: torch.Tensor) -> list[float]:
    """Return the log SNR of every level at a timestep, for images in [-1, 1] as the signal.

    Args:
        scheduler: ours, or one of diffusers' for a single level.
        sample: levels, of which only the shapes are used.
        timestep: t.
    """
    levels = as_pyramid(sample)[0]
    if not hasattr(scheduler, "level_alphas_cumprod"):
        powers, scales = [float(scheduler.alphas_cumprod[round(float(timestep))])], [1.0]
    else:
        powers = [float(power[0]) for power in scheduler.level_alphas_cumprod(sample, timestep.reshape(1))]
        is_rescaled = scheduler.config.level_scaling == "rescale"
        scales = level_ratios(levels) if is_rescaled else [1.0] * len(levels)
    return [_log_snr(power) - 2 * math.log(scale) for power, scale in zip(powers, scales, strict=True)]


def _log_snr(power: float) -> float:
    if power <= 0:
        return -math.inf
    return math.log(power) - math.log1p(-power) if power < 1 else math.inf


@dataclass
class LevelOpening:
    """Determines which levels of a drawing run at which step.

    Attributes:
        drawing: the drawing, whose request has the threshold, `open_levels_at`.
        counts: number of (inner) levels that run at each timestep.
        num_opened: number of levels that have run so far.
        clean: the last predicted images of the levels that ran.
    """

    drawing: Drawing
    counts: list[int]
    num_opened: int
    clean: Pyramid | None = None

    @classmethod
    def of(cls, drawing: Drawing, sample: Sample) -> LevelOpening:
        """Create an object for a drawing that begins with a sample of all its levels."""
        num_levels, threshold = len(as_pyramid(sample)[0]), drawing.request.open_levels_at
        counts = [num_levels] * len(drawing.timesteps)
        if num_levels > 1 and threshold > -math.inf:
            for position, timestep in enumerate(drawing.timesteps):
                visible = [value >= threshold for value in log_snrs(drawing.scheduler, sample, timestep)]
                # A level runs only if the level inside it runs, and level 0 always runs.
                counts[position] = next((i for i in range(1, num_levels) if not visible[i]), num_levels)
        return cls(drawing, counts, num_opened=counts[drawing.positions[0]] if len(drawing.positions) else num_levels)

    def opened(self, sample: Sample, position: int) -> Sample:
        """Return the samples at a step, with proper samples for levels that start to run at it.

        Args:
            sample: samples of all levels; those of levels that have not run are noise.
            position: index of the step.
        """
        count, levels = self.counts[position], as_pyramid(sample)[0]
        if count <= self.num_opened:
            return sample
        clean, self.num_opened = self._filled_up(self.clean, levels[:count]), count
        if clean is None:
            return sample
        noised_levels = noised(self.drawing, clean, levels[:count], self.drawing.timesteps[position], bare=False)
        begun = range(len(self.clean or ()), count)
        return [noised_levels[i].to(level.dtype) if i in begun else level for i, level in enumerate(levels)]

    def running(self, sample: Sample, position: int) -> Sample:
        """Return the samples of the levels that run at a step."""
        levels, bare = as_pyramid(sample)
        return sample if bare else levels[: self.counts[position]]

    def beside_waiting(self, stepped: Sample, before: Sample) -> Sample:
        """Return the samples after a step, with those of levels that did not run unchanged."""
        levels, bare = as_pyramid(stepped)
        return stepped if bare else [*levels, *before[len(levels) :]]

    def preview(self, clean: Any, sample: Sample) -> Any:
        """Record the images predicted at a step, and return those of all levels, enlarged for levels that did not run.

        Args:
            clean: predicted images of the levels that ran; None if the scheduler does not return them.
            sample: samples of all levels.
        """
        if clean is None or isinstance(clean, torch.Tensor):
            return clean
        self.clean = list(clean)
        return self._filled_up(self.clean, as_pyramid(sample)[0])

    def _filled_up(self, clean: Pyramid | None, like: Pyramid) -> Pyramid | None:
        """Return predicted images of as many levels as `like`, with missing ones enlarged from the level inside."""
        if clean is None:
            return None
        filled = list(clean)
        for level in like[len(filled) :]:
            filled.append(enlarge(filled[-1][: len(level)], level))
        return filled
