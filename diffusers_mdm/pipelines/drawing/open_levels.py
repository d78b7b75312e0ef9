# SPDX-License-Identifier: Apache-2.0
"""Outer levels wait while they are noise: until then the inner levels are drawn alone, for a fraction of the work.

The larger a level, the lower its log SNR at the same time step. Far below 0 its sample tells the model nothing, so the
level need not run; it is opened at the first step where its log SNR reaches a threshold. Its sample then is what the
process makes of the inner level's predicted picture, enlarged, and of the level's own starting noise: at such a noise
level the details that an enlarged picture lacks do not show.
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
    """The log SNR of every level at a time step, pictures in [-1, 1] taken as the signal.

    Args:
        scheduler: ours, or one of diffusers' for a single level.
        sample: levels, for their shapes only.
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
    """Which levels of a drawing run at which step.

    Attributes:
        drawing: its request has the threshold, `open_levels_at`.
        counts: how many levels run at each of the time steps, the inner ones.
        num_opened: how many levels have run.
        clean: the pictures predicted last, of the levels that ran.
    """

    drawing: Drawing
    counts: list[int]
    num_opened: int
    clean: Pyramid | None = None

    @classmethod
    def of(cls, drawing: Drawing, sample: Sample) -> LevelOpening:
        """Decide for a drawing that begins with a sample of all its levels."""
        num_levels, threshold = len(as_pyramid(sample)[0]), drawing.request.open_levels_at
        counts = [num_levels] * len(drawing.timesteps)
        if num_levels > 1 and threshold > -math.inf:
            for position, timestep in enumerate(drawing.timesteps):
                visible = [value >= threshold for value in log_snrs(drawing.scheduler, sample, timestep)]
                # A level runs around the one inside it, and level 0 always runs.
                counts[position] = next((i for i in range(1, num_levels) if not visible[i]), num_levels)
        return cls(drawing, counts, num_opened=counts[drawing.positions[0]] if len(drawing.positions) else num_levels)

    def opened(self, sample: Sample, position: int) -> Sample:
        """The samples at a step, in which the levels that begin to run there have their place in the process.

        Args:
            sample: of all levels; those that have not run are noise.
            position: of the step among the time steps.
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
        """The samples of those levels that run at a step."""
        levels, bare = as_pyramid(sample)
        return sample if bare else levels[: self.counts[position]]

    def beside_waiting(self, stepped: Sample, before: Sample) -> Sample:
        """The samples after a step, and as they were where levels did not run."""
        levels, bare = as_pyramid(stepped)
        return stepped if bare else [*levels, *before[len(levels) :]]

    def preview(self, clean: Any, sample: Sample) -> Any:
        """Note the pictures that a step predicted, and give those of all levels, enlarged where levels did not run.

        Args:
            clean: of the levels that ran; None where the scheduler does not tell.
            sample: of all levels.
        """
        if clean is None or isinstance(clean, torch.Tensor):
            return clean
        self.clean = list(clean)
        return self._filled_up(self.clean, as_pyramid(sample)[0])

    def _filled_up(self, clean: Pyramid | None, like: Pyramid) -> Pyramid | None:
        """Predicted pictures of as many levels as `like`, the missing ones enlarged from those inside."""
        if clean is None:
            return None
        filled = list(clean)
        for level in like[len(filled) :]:
            filled.append(enlarge(filled[-1][: len(level)], level))
        return filled
