# SPDX-License-Identifier: Apache-2.0
"""What a way of guiding is: two predictions of one level at one step in, one prediction out.

Plain classifier-free guidance is here as well, since all others are measured by it.
"""

from __future__ import annotations

import copy
import functools
from dataclasses import dataclass
from typing import Any

import torch

from diffusers_mdm.pipelines.drawing.open_levels import log_snrs
from diffusers_mdm.pipelines.drawing.request import Sample
from diffusers_mdm.pyramid import as_pyramid
from diffusers_mdm.schedulers.predictions import amplitudes, clean_from_prediction


@dataclass(frozen=True)
class NoiseLevels:
    """How noisy the levels of a step are, computed when a method asks.

    Attributes:
        scheduler: of the drawing.
        sample: what the model is shown, all levels that run.
        timestep: t.
    """

    scheduler: Any
    sample: Sample
    timestep: torch.Tensor

    @functools.cached_property
    def log_snrs(self) -> list[float]:
        """See `open_levels.log_snrs`."""
        return log_snrs(self.scheduler, self.sample, self.timestep)

    @functools.cached_property
    def powers(self) -> list[float]:
        """Signal power of every level."""
        if not hasattr(self.scheduler, "level_alphas_cumprod"):
            return [float(self.scheduler.alphas_cumprod[round(float(self.timestep))])]
        powers = self.scheduler.level_alphas_cumprod(self.sample, self.timestep.reshape(1))
        return [float(power[0]) for power in powers]


@dataclass(frozen=True)
class LevelStep:
    """What a method is told of one level at one step.

    Attributes:
        level: its index, 0 is the innermost one.
        scale: weight w of the guidance at this level.
        rescale: how far the spread of the result is brought back to that of the conditional prediction, 0 to 1.
        noise: of all levels at this step.
        step: how many steps were done before this one.
        num_steps: how many there are.
    """

    level: int
    scale: float
    rescale: float
    noise: NoiseLevels
    step: int
    num_steps: int

    @property
    def log_snr(self) -> float:
        """Of this level."""
        return self.noise.log_snrs[self.level]

    @property
    def sample(self) -> torch.Tensor:
        """The noisy level z that the model is shown, `(B, C, H, W)`, or with frames."""
        return as_pyramid(self.noise.sample)[0][self.level]

    def clean(self, prediction: torch.Tensor) -> torch.Tensor:
        """The clean level x0 that a prediction stands for."""
        kind = self.noise.scheduler.config.get("prediction_type", "epsilon")
        return clean_from_prediction(prediction, self.sample, *self._amplitudes, kind)

    def velocity(self, prediction: torch.Tensor) -> torch.Tensor:
        """The velocity v = alpha eps - sigma x0 that a prediction stands for."""
        if self.noise.scheduler.config.get("prediction_type", "epsilon") == "v_prediction":
            return prediction
        alpha, sigma = self._amplitudes
        return (alpha * self.sample - self.clean(prediction)) / sigma

    def prediction(self, clean: torch.Tensor) -> torch.Tensor:
        """The prediction that stands for a clean level."""
        alpha, sigma = self._amplitudes
        kind = self.noise.scheduler.config.get("prediction_type", "epsilon")
        if kind == "sample":
            return clean
        if kind == "epsilon":
            return (self.sample - alpha * clean) / sigma
        return (alpha * self.sample - clean) / sigma

    def prediction_of_velocity(self, velocity: torch.Tensor) -> torch.Tensor:
        """The prediction that stands for a velocity."""
        alpha, sigma = self._amplitudes
        return self.prediction(alpha * self.sample - sigma * velocity)

    @property
    def _amplitudes(self) -> tuple[float, float]:
        return amplitudes(self.noise.powers[self.level])


class GuidanceMethod:
    """A way of guiding. Each level of a drawing has its own copy (`new`), which may remember earlier steps."""

    def new(self) -> GuidanceMethod:
        """A copy that remembers nothing."""
        return copy.deepcopy(self)

    def needs_other(self, at: LevelStep) -> bool:
        """Whether the level needs the other prediction at a step: only a weight above 1 pushes away from it.

        Where no level does, the model runs once in place of twice.
        """
        return is_guided(at.scale)

    def combine(self, conditional: torch.Tensor, other: torch.Tensor | None, at: LevelStep) -> torch.Tensor:
        """One prediction of two.

        Args:
            conditional: with the prompt, `(B, C, H, W)`, or with frames.
            other: what guidance pushes away from, the same shape: without the prompt, or of a weaker model. None
                where the level did not need it.
            at: the level and the step.
        """
        if other is None:
            return conditional
        return rescaled(self.guide(conditional, other, at), conditional, at.rescale)

    def guide(self, conditional: torch.Tensor, other: torch.Tensor, at: LevelStep) -> torch.Tensor:
        """What a method is: arguments as of `combine`."""
        raise NotImplementedError(f"{type(self).__name__} does not say how it guides; give it a method `guide`.")


@dataclass(frozen=True)
class PlainGuidance(GuidanceMethod):
    """Push a prediction away from the other one: u + w (c - u) (Imagen, arXiv:2205.11487, equation 2; ml-mdm applies
    it to v at every level). A weight of 1 gives c.
    """

    def guide(self, conditional: torch.Tensor, other: torch.Tensor, at: LevelStep) -> torch.Tensor:
        """See `GuidanceMethod.guide`."""
        return other + at.scale * (conditional - other)


def rescaled(guided: torch.Tensor, conditional: torch.Tensor, guidance_rescale: float) -> torch.Tensor:
    """A guided prediction whose spread is brought back to that of the conditional one (arXiv:2305.08891, section 3.4).

    Args:
        guided: `(B, C, H, W)`, or with frames.
        conditional: the same shape.
        guidance_rescale: 0 to 1, how far each sample's standard deviation is brought back.
    """
    if guidance_rescale == 0.0:
        return guided
    axes = tuple(range(1, guided.ndim))
    spread_back = guided * (conditional.std(dim=axes, keepdim=True) / guided.std(dim=axes, keepdim=True))
    return guidance_rescale * spread_back + (1.0 - guidance_rescale) * guided


def is_guided(guidance_scale: float | list[float]) -> bool:
    """Whether a weight, or that of any level, is above 1."""
    return any(weight > 1.0 for weight in guidance_scale) if isinstance(guidance_scale, list) else guidance_scale > 1.0
