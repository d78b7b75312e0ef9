# SPDX-License-Identifier: Apache-2.0
"""Prediction types: converting network outputs to clean samples and back, for reverse steps and losses alike.

Glossary: as in `diffusion_process`, and v = alpha eps - sigma x0.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from ..pyramid import Pyramid, in_full_precision, matching_levels
from .block_averages import enlarge
from .diffusion_process import (
    PyramidForwardProcess,
    Sample,
    amplitudes,
    as_timesteps,
    dynamic_threshold,
    noise_from_clean,
    row_amplitudes,
)
from .level_agreement import agree

Change = Callable[[torch.Tensor], torch.Tensor]

PREDICTION_TYPES = ("v_prediction", "epsilon", "sample", "residual")


def level_predictions(prediction_type: str | Sequence[str], num_levels: int) -> list[str]:
    """Return the prediction type of each of the inner `num_levels` levels, innermost first.

    Args:
        prediction_type: one for all levels, or one per level, innermost first; those of missing outer levels are
            ignored. A single "residual" applies to the outer levels, with v-prediction at level 0.
        num_levels: at least 1.

    Raises:
        ValueError: fewer than there are levels.
    """
    if isinstance(prediction_type, str):
        innermost = "v_prediction" if prediction_type == "residual" else prediction_type
        return [innermost] + [prediction_type] * (num_levels - 1)
    return _of_levels("prediction_type", prediction_type, num_levels)


def level_sigmas(sigma_data: float | Sequence[float], num_levels: int) -> list[float]:
    """Return the `sigma_data` of each of the inner `num_levels` levels; that of level 0 is not used.

    Args:
        sigma_data: one for all levels, or one for each *outer* level, innermost first.
        num_levels: at least 1.

    Raises:
        ValueError: fewer than there are outer levels.
    """
    if isinstance(sigma_data, (int, float)):
        return [float(sigma_data)] * num_levels
    return [1.0, *_of_levels("sigma_data", sigma_data, num_levels - 1)]


def _of_levels(name: str, values: Sequence[Any], number: int) -> list[Any]:
    if len(values) < number:
        raise ValueError(
            f"`{name}` of the scheduler is {list(values)!r}, but {number} are needed for the levels of this "
            f"sample: pass one for each of them, or a single one for all."
        )
    return list(values[:number])


@dataclass(frozen=True)
class LevelPrediction:
    """The prediction type of one level at a timestep, with conversions between network output and clean sample.

    "residual": with u the enlarged clean image of the level inside, r = x0 - u the residual, with standard deviation
    s, and y = x - alpha u = alpha r + sigma eps, the clean level is

        x0 = u + c_skip y - c_out F,
        c_skip = alpha s^2 / (alpha^2 s^2 + sigma^2),
        c_out = sigma s / sqrt(alpha^2 s^2 + sigma^2),

    for a network output F, whose target has unit variance at every t (Karras et al. 2022, arXiv:2206.00364, appendix
    B.6, for a variance-preserving process and data of standard deviation s). With u = 0 and s = 1, F is v.

    Attributes:
        kind: one of `PREDICTION_TYPES`.
        alpha: amplitude of the signal: a number, or a tensor that broadcasts against the level.
        sigma: amplitude of the noise; like `alpha`.
        sigma_data: s, for "residual".
        base: u, in the units of the process, for "residual".
    """

    kind: str
    alpha: float | torch.Tensor
    sigma: float | torch.Tensor
    sigma_data: float = 1.0
    base: torch.Tensor | None = None

    def clean(self, output: torch.Tensor, sample: torch.Tensor) -> torch.Tensor:
        """Return x0 for a network output, in the same shape.

        Raises:
            ValueError: the kind is unknown, noise is predicted from pure noise, or the base of a residual is missing.
        """
        if self.kind == "v_prediction":
            return self.alpha * sample - self.sigma * output
        if self.kind == "epsilon":
            if isinstance(self.alpha, float) and self.alpha == 0:
                raise ValueError(
                    "The timestep is pure noise, where a noise prediction says nothing about the image: start at a "
                    "lower timestep, or use a network that predicts v."
                )
            return (sample - self.sigma * output) / self.alpha
        if self.kind == "sample":
            return output
        base, c_skip, c_out = self._residual()
        return base + c_skip * (sample - self.alpha * base) - c_out * output

    def output(self, clean: torch.Tensor, sample: torch.Tensor) -> torch.Tensor:
        """Return the network output for a clean level: the inverse of `clean`."""
        if self.kind == "v_prediction":
            return (self.alpha * sample - clean) / self.sigma
        if self.kind == "epsilon":
            return noise_from_clean(clean, sample, self.alpha, self.sigma)
        if self.kind == "sample":
            return clean
        base, c_skip, c_out = self._residual()
        return (base + c_skip * (sample - self.alpha * base) - clean) / c_out

    def _residual(self) -> tuple[torch.Tensor, float | torch.Tensor, float | torch.Tensor]:
        """Return u, c_skip and c_out."""
        if self.kind != "residual":
            raise ValueError(f"`prediction_type` is {self.kind!r}; expected one of {', '.join(PREDICTION_TYPES)}.")
        if self.base is None:
            raise ValueError(
                'A "residual" is relative to the level inside it, so it needs the whole pyramid, not a single level.'
            )
        s, alpha, sigma = self.sigma_data, self.alpha, self.sigma
        variance = (alpha * s) ** 2 + sigma**2
        return self.base, alpha * s**2 / variance, sigma * s / variance**0.5


class PyramidPredictions(PyramidForwardProcess):
    """Conversion of predictions according to the config's `prediction_type`, as a base class of `MatryoshkaScheduler`.

    A level that predicts a residual needs the clean image of the level inside it, so levels are processed from the
    inside out.
    """

    def get_velocity(self, sample: Sample, noise: Sample, timesteps: torch.Tensor) -> torch.Tensor | Pyramid:
        """Compute v^i = alpha_t^i eps^i - sigma_t^i x^i for every level, the target of "v_prediction".

        Arguments as in `add_noise`; `sample` is the clean images.
        """
        return self._over_levels(velocity, sample, noise, timesteps)

    def velocities_of(self, model_output: Sample, clean: Sample, sample: Sample, timesteps: torch.Tensor) -> Pyramid:
        """Convert predictions to v, so that losses of all prediction types compare errors of v.

        Residuals are relative to the true image of the level inside, which is known during training.

        Args:
            model_output: the network's predictions, with the shapes of `sample`.
            clean: clean images of all levels, in [-1, 1].
            sample: z_t of all levels.
            timesteps: `(B_0,)`, or one number for all samples.

        Returns:
            One tensor per level, innermost first; the predictions themselves where the network predicts v.
        """
        levels, ratios, bare = self._levels(sample, "sample")
        outputs = matching_levels(model_output, levels, "model_output")
        pictures = matching_levels(clean, levels, "the clean sample")
        kinds, sigmas = self._kinds(len(levels), ratios, bare)
        if all(kind == "v_prediction" for kind in kinds):
            return outputs
        powers = self.level_alphas_cumprod(sample, as_timesteps(timesteps).to(levels[0].device))
        velocities = []
        for index, (output, level, power) in enumerate(zip(outputs, levels, powers, strict=True)):
            alpha, sigma = row_amplitudes(power, level)
            base = self._base(kinds[index], pictures[:index], level, ratios[index])
            meaning = LevelPrediction(kinds[index], alpha, sigma, sigmas[index], base)
            noisy = in_full_precision(level)
            found = meaning.clean(in_full_precision(output), noisy)
            velocities.append(LevelPrediction("v_prediction", alpha, sigma).output(found, noisy))
        return velocities

    def own_error_factors(self, powers: Sequence[torch.Tensor]) -> list[torch.Tensor | None]:
        """What turns squared errors of v into those of what each level itself predicts.

        Args:
            powers: signal power of every batch row, element i `(B_i,)`, see `level_alphas_cumprod`.

        Returns:
            `(B_i,)` for every level, innermost first; None where the level predicts v.
        """
        kinds, sigmas = self._kinds(len(powers), [1.0], is_alone=False)
        factors: list[torch.Tensor | None] = []
        for kind, sigma_data, power in zip(kinds, sigmas, powers, strict=True):
            if kind == "v_prediction":
                factors.append(None)
            elif kind == "residual":
                factors.append(power + (1 - power) / sigma_data**2)
            else:
                factors.append(power if kind == "epsilon" else 1 - power)
        return factors

    def with_clean_changed(
        self, model_output: Sample, sample: Sample, timestep: torch.Tensor, change: Change
    ) -> Pyramid:
        """Modify predictions such that `step` computes different clean images from them.

        Args:
            model_output: the network's predictions, with the shapes of `sample`.
            sample: z_t of all levels.
            timestep: t, one for all samples and levels.
            change: maps the predicted clean image of a level, `(B, C, H, W)` in about [-1, 1], to the one that is
                wanted; returns the same tensor for a level that is not to be changed.

        Returns:
            Predictions of all levels, innermost first, in the dtypes of `model_output`.
        """
        levels, ratios, bare = self._levels(sample, "sample")
        outputs = matching_levels(model_output, levels, "model_output")
        kinds, sigmas = self._kinds(len(levels), ratios, bare)
        powers = self.level_alphas_cumprod(sample, as_timesteps(timestep))
        changed: Pyramid = []
        pictures: Pyramid = []
        for index, (output, level, power) in enumerate(zip(outputs, levels, powers, strict=True)):
            base = self._base(kinds[index], pictures, level, ratios[index])
            meaning = LevelPrediction(kinds[index], *row_amplitudes(power, level), sigmas[index], base)
            noisy, scale = in_full_precision(level), self._image_scale(ratios[index])
            found = meaning.clean(in_full_precision(output), noisy) * scale
            wanted = change(found)
            changed.append(output if wanted is found else meaning.output(wanted / scale, noisy).to(output.dtype))
            pictures.append(self._threshold(wanted))
        return changed

    def _clean_pictures(
        self, outputs: Pyramid, samples: Pyramid, powers: Sequence[float], ratios: list[float], strengths: list[float]
    ) -> Pyramid:
        """Return the thresholded x0 of every level in [-1, 1], after applying `level_agreement`."""
        kinds, sigmas = self._kinds(len(samples), ratios, len(samples) == 1)
        pictures: Pyramid = []
        for index, (output, level, ratio) in enumerate(zip(outputs, samples, ratios, strict=True)):
            base = self._base(kinds[index], pictures, level, ratio)
            meaning = LevelPrediction(kinds[index], *amplitudes(powers[index]), sigmas[index], base)
            clean = meaning.clean(in_full_precision(output), in_full_precision(level))
            picture = self._threshold(clean * self._image_scale(ratio))
            strength = strengths[index - 1] if index and strengths else 0.0
            if strength:
                picture = agree([pictures[-1], picture], [strength], self._bound)[-1]
            pictures.append(picture)
        return pictures

    def _kinds(self, num_levels: int, ratios: list[float], is_alone: bool) -> tuple[list[str], list[float]]:
        """Return the prediction type and sigma_data of each level.

        Raises:
            ValueError: a single level other than level 0, if the levels have different prediction types.
        """
        kind = self.config.prediction_type
        if is_alone and ratios[0] > 1 and (kind == "residual" or not isinstance(kind, str)):
            raise ValueError(
                f"`prediction_type` is {kind!r}, which differs from level to level: pass the whole pyramid, not one "
                "level of it."
            )
        return level_predictions(kind, num_levels), level_sigmas(self.config.sigma_data, num_levels)

    def _base(self, kind: str, inner: Pyramid, like: torch.Tensor, ratio: float) -> torch.Tensor | None:
        """Return the base of a residual, in the units of the process: the enlarged image of the level inside."""
        if kind != "residual":
            return None
        rows = in_full_precision(inner[-1][: len(like)])
        return enlarge(rows, like) / self._image_scale(ratio)

    @property
    def _bound(self) -> float | None:
        """Return the bound of predicted clean images, 1 for images in [-1, 1]; None for no bound."""
        if self.config.thresholding:
            return 1.0
        return self.config.clip_sample_range if self.config.clip_sample else None

    def _threshold(self, clean: torch.Tensor) -> torch.Tensor:
        if self.config.thresholding:
            return dynamic_threshold(clean, self.config.dynamic_thresholding_ratio, self.config.sample_max_value)
        if self.config.clip_sample:
            return clean.clamp(-self.config.clip_sample_range, self.config.clip_sample_range)
        return clean


def velocity(clean: torch.Tensor, noise: torch.Tensor, power: torch.Tensor, scale: float = 1.0) -> torch.Tensor:
    """Compute v_t = sqrt(g) eps - sqrt(1 - g) x / scale (ml-mdm, Schedule / diffusion); arguments as in
    `noisy_sample`.
    """
    signal, spread = row_amplitudes(power, clean)
    mixed = signal * in_full_precision(noise) - spread * (in_full_precision(clean) / scale)
    return mixed.to(clean.dtype)
