# SPDX-License-Identifier: Apache-2.0
"""The interface of guidance methods, which combine two predictions of a level at a step into one."""

from __future__ import annotations

import copy
import dataclasses
import functools
from dataclasses import dataclass
from typing import Any, ClassVar

import torch

from diffusers_mdm.pipelines.drawing.guidance.prediction import is_guided, plain, rescaled
from diffusers_mdm.pipelines.drawing.open_levels import log_snrs
from diffusers_mdm.pipelines.drawing.request import Sample
from diffusers_mdm.pipelines.drawing.setup import Drawing
from diffusers_mdm.pyramid import as_pyramid
from diffusers_mdm.schedulers.predictions import (
    RESIDUALS,
    LevelPrediction,
    amplitudes,
    level_predictions,
    level_sigmas,
)


@dataclass(frozen=True)
class NoiseLevels:
    """Noise levels at a step, computed when a method needs them.

    Attributes:
        scheduler: scheduler of the drawing.
        sample: input of the model, for all levels that run.
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
        """Return the signal power of every level."""
        if not hasattr(self.scheduler, "level_alphas_cumprod"):
            return [float(self.scheduler.alphas_cumprod[round(float(self.timestep))])]
        powers = self.scheduler.level_alphas_cumprod(self.sample, self.timestep.reshape(1))
        return [float(power[0]) for power in powers]


@dataclass(frozen=True)
class LevelStep:
    """One level at one step, as a guidance method sees it.

    Attributes:
        level: index of the level; 0 is the innermost one.
        scale: guidance scale w of this level.
        rescale: 0 to 1, how far the standard deviation of the result is moved to that of the conditional prediction.
        noise: noise levels of all levels at this step.
        step: number of steps before this one.
        num_steps: total number of steps.
        needs_other: result of `GuidanceMethod.needs_other` for this step.
    """

    level: int
    scale: float
    rescale: float
    noise: NoiseLevels
    step: int
    num_steps: int
    needs_other: bool = False

    @property
    def log_snr(self) -> float:
        """The log SNR of this level."""
        return self.noise.log_snrs[self.level]

    @property
    def sample(self) -> torch.Tensor:
        """The model's input z at this level, `(B, C, H, W)`, or with frames."""
        return as_pyramid(self.noise.sample)[0][self.level]

    def clean(self, prediction: torch.Tensor) -> torch.Tensor:
        """Convert a prediction to the clean level x0; for a residual, with zero as its base."""
        return self._meaning.clean(prediction, self.sample)

    def velocity(self, prediction: torch.Tensor) -> torch.Tensor:
        """Convert a prediction to the velocity v = alpha eps - sigma x0."""
        if self._meaning.kind == "v_prediction":
            return prediction
        return self._as_velocity.output(self.clean(prediction), self.sample)

    def prediction(self, clean: torch.Tensor) -> torch.Tensor:
        """Convert a clean level to a prediction."""
        return self._meaning.output(clean, self.sample)

    def prediction_of_velocity(self, velocity: torch.Tensor) -> torch.Tensor:
        """Convert a velocity to a prediction."""
        return self.prediction(self._as_velocity.clean(velocity, self.sample))

    @functools.cached_property
    def _meaning(self) -> LevelPrediction:
        config, inner = self.noise.scheduler.config, self.level + 1
        kind = level_predictions(config.get("prediction_type", "epsilon"), inner)[-1]
        base, sigma_data = None, 1.0
        if kind in RESIDUALS:
            # Guidance compares predictions with the same inner image, which is not known yet.
            base, sigma_data = torch.zeros_like(self.sample), level_sigmas(config["sigma_data"], inner)[-1]
        return LevelPrediction(kind, *amplitudes(self.noise.powers[self.level]), sigma_data, base)

    @property
    def _as_velocity(self) -> LevelPrediction:
        return LevelPrediction("v_prediction", self._meaning.alpha, self._meaning.sigma)


class GuidanceMethod:
    """A guidance method. Each level of a drawing has its own copy (`new`), which can keep state from earlier steps.

    Attributes:
        has_own_scale: whether the method has its own scale and ignores `guidance_scale`.
    """

    has_own_scale: ClassVar[bool] = False

    def new(self) -> GuidanceMethod:
        """Return a copy without state."""
        return copy.deepcopy(self)

    def for_levels(self, num_levels: int) -> LevelGuidance:
        """Return copies of the method for the levels of a drawing."""
        return LevelGuidance([self.new() for _ in range(num_levels)])

    def needs_other(self, at: LevelStep) -> bool:
        """Return whether the level needs the other prediction at a step, which is so for scales above 1.

        If no level needs it, the model runs once instead of twice.
        """
        return is_guided(at.scale)

    def combine(self, conditional: torch.Tensor, other: torch.Tensor | None, at: LevelStep) -> torch.Tensor:
        """Combine two predictions into one.

        Args:
            conditional: prediction with the prompt, `(B, C, H, W)`, or with frames.
            other: prediction without the prompt, or of a weaker model, in the same shape; None if it is not needed.
            at: the level and the step.
        """
        if other is None:
            return conditional
        return rescaled(self.guide(conditional, other, at), conditional, at.rescale)

    def guide(self, conditional: torch.Tensor, other: torch.Tensor, at: LevelStep) -> torch.Tensor:
        """Return the guided prediction; subclasses implement this. Arguments as for `combine`."""
        raise NotImplementedError(f"{type(self).__name__} does not implement guidance; give it a method `guide`.")


@dataclass(frozen=True)
class PlainGuidance(GuidanceMethod):
    """Plain classifier-free guidance; see `prediction.plain`."""

    def guide(self, conditional: torch.Tensor, other: torch.Tensor, at: LevelStep) -> torch.Tensor:
        """See `GuidanceMethod.guide`."""
        return plain(conditional, other, at.scale)


@dataclass(frozen=True)
class LevelGuidance:
    """The guidance of a drawing, with one copy of the method per level.

    Attributes:
        methods: the copies, innermost level first.
    """

    methods: list[GuidanceMethod]

    def begin_step(
        self, drawing: Drawing, sample: Sample, timestep: torch.Tensor, step: int, scales: list[float]
    ) -> list[LevelStep]:
        """Return the `LevelStep` of every level that runs.

        Args:
            drawing: the drawing, whose scheduler determines the noise levels.
            sample: input of the model.
            timestep: t.
            step: number of steps before this one.
            scales: guidance scale of every level.
        """
        noise, num_steps = NoiseLevels(drawing.scheduler, sample, timestep), drawing.controls.num_timesteps
        rescale = drawing.controls.guidance_rescale
        steps = [LevelStep(level, scale, rescale, noise, step, num_steps) for level, scale in enumerate(scales)]
        return [
            dataclasses.replace(at, needs_other=method.needs_other(at))
            for method, at in zip(self.methods, steps, strict=False)
        ]

    def combine(self, conditional: Sample, other: Sample | None, steps: list[LevelStep]) -> Sample:
        """Return the guided predictions of all levels; for a bare tensor, a bare tensor.

        Args:
            conditional: conditional predictions of every level.
            other: other predictions of every level, None if no level needs them.
            steps: see `begin_step`.
        """
        conditionals, bare = as_pyramid(conditional)
        others = [None] * len(conditionals) if other is None else as_pyramid(other)[0]
        guided = [
            method.combine(c, u if at.needs_other else None, at)
            for method, c, u, at in zip(self.methods, conditionals, others, steps, strict=False)
        ]
        return guided[0] if bare else guided
