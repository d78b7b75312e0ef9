# SPDX-License-Identifier: Apache-2.0
"""What a way of guiding is: two predictions of one level at one step in, one prediction out."""

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
from diffusers_mdm.schedulers.diffusion_process import amplitudes
from diffusers_mdm.schedulers.predictions import LevelPrediction, level_predictions, level_sigmas


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
        needs_other: what the method said of this step, see `GuidanceMethod.needs_other`.
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
        """Of this level."""
        return self.noise.log_snrs[self.level]

    @property
    def sample(self) -> torch.Tensor:
        """The noisy level z that the model is shown, `(B, C, H, W)`, or with frames."""
        return as_pyramid(self.noise.sample)[0][self.level]

    def clean(self, prediction: torch.Tensor) -> torch.Tensor:
        """The clean level x0 that a prediction stands for; of a residual, what it is with nothing inside it."""
        return self._meaning.clean(prediction, self.sample)

    def velocity(self, prediction: torch.Tensor) -> torch.Tensor:
        """The velocity v = alpha eps - sigma x0 that a prediction stands for."""
        if self._meaning.kind == "v_prediction":
            return prediction
        return self._as_velocity.output(self.clean(prediction), self.sample)

    def prediction(self, clean: torch.Tensor) -> torch.Tensor:
        """The prediction that stands for a clean level."""
        return self._meaning.output(clean, self.sample)

    def prediction_of_velocity(self, velocity: torch.Tensor) -> torch.Tensor:
        """The prediction that stands for a velocity."""
        return self.prediction(self._as_velocity.clean(velocity, self.sample))

    @functools.cached_property
    def _meaning(self) -> LevelPrediction:
        config, inner = self.noise.scheduler.config, self.level + 1
        kind = level_predictions(config.get("prediction_type", "epsilon"), inner)[-1]
        base, sigma_data = None, 1.0
        if kind == "residual":
            # Guidance compares predictions over the same inner picture, which is not known yet.
            base, sigma_data = torch.zeros_like(self.sample), level_sigmas(config["sigma_data"], inner)[-1]
        return LevelPrediction(kind, *amplitudes(self.noise.powers[self.level]), sigma_data, base)

    @property
    def _as_velocity(self) -> LevelPrediction:
        return LevelPrediction("v_prediction", self._meaning.alpha, self._meaning.sigma)


class GuidanceMethod:
    """A way of guiding. Each level of a drawing has its own copy (`new`), which may remember earlier steps.

    Attributes:
        has_own_scale: whether the method brings its own weight in place of `guidance_scale`.
    """

    has_own_scale: ClassVar[bool] = False

    def new(self) -> GuidanceMethod:
        """A copy that remembers nothing."""
        return copy.deepcopy(self)

    def for_levels(self, num_levels: int) -> LevelGuidance:
        """The method as one drawing takes it."""
        return LevelGuidance([self.new() for _ in range(num_levels)])

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
    """Classifier-free guidance as all others are measured by, see `prediction.plain`."""

    def guide(self, conditional: torch.Tensor, other: torch.Tensor, at: LevelStep) -> torch.Tensor:
        """See `GuidanceMethod.guide`."""
        return plain(conditional, other, at.scale)


@dataclass(frozen=True)
class LevelGuidance:
    """The method of a drawing, a copy a level.

    Attributes:
        methods: innermost level first.
    """

    methods: list[GuidanceMethod]

    def begin_step(
        self, drawing: Drawing, sample: Sample, timestep: torch.Tensor, step: int, scales: list[float]
    ) -> list[LevelStep]:
        """What the methods are told of a step, one entry a level that runs.

        Args:
            drawing: in whose scheduler the noise levels are.
            sample: what the model is shown.
            timestep: t.
            step: how many steps were done before this one.
            scales: weight of every level.
        """
        noise, num_steps = NoiseLevels(drawing.scheduler, sample, timestep), drawing.controls.num_timesteps
        rescale = drawing.controls.guidance_rescale
        steps = [LevelStep(level, scale, rescale, noise, step, num_steps) for level, scale in enumerate(scales)]
        return [
            dataclasses.replace(at, needs_other=method.needs_other(at))
            for method, at in zip(self.methods, steps, strict=False)
        ]

    def combine(self, conditional: Sample, other: Sample | None, steps: list[LevelStep]) -> Sample:
        """The guided predictions of all levels; a bare tensor stays bare.

        Args:
            conditional: of every level.
            other: of every level, None where no level needs it.
            steps: see `begin_step`.
        """
        conditionals, bare = as_pyramid(conditional)
        others = [None] * len(conditionals) if other is None else as_pyramid(other)[0]
        guided = [
            method.combine(c, u if at.needs_other else None, at)
            for method, c, u, at in zip(self.methods, conditionals, others, steps, strict=False)
        ]
        return guided[0] if bare else guided
