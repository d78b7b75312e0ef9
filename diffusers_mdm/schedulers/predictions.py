# SPDX-License-Identifier: Apache-2.0
"""What a network predicts, and the only place where a prediction becomes the clean sample, or a clean sample a
prediction: for reverse steps and losses alike.

Glossary: that of `diffusion_process`, and v = alpha eps - sigma x0.
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
    """What the network predicts at each of the inner `num_levels` levels, innermost first.

    Args:
        prediction_type: one for all levels, or one for each, innermost first; those of outer levels that are not
            there are left out. One "residual" for all is that of the outer levels, over a level 0 that predicts v.
        num_levels: at least 1.

    Raises:
        ValueError: fewer than there are levels.
    """
    if isinstance(prediction_type, str):
        innermost = "v_prediction" if prediction_type == "residual" else prediction_type
        return [innermost] + [prediction_type] * (num_levels - 1)
    return _of_levels("prediction_type", prediction_type, num_levels)


def level_sigmas(sigma_data: float | Sequence[float], num_levels: int) -> list[float]:
    """The `sigma_data` of each of the inner `num_levels` levels; that of level 0 is not used.

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
            f"`{name}` of the scheduler is {list(values)!r}, but {number} are needed for the levels of this sample: "
            "give one for each of them, or a single one for all."
        )
    return list(values[:number])


@dataclass(frozen=True)
class LevelPrediction:
    """What the network predicts at one level, and what that means there.

    "residual": with u the enlarged clean picture of the level inside, r = x0 - u what it lacks, of standard deviation
    s, and y = x - alpha u = alpha r + sigma eps, the clean level is

        x0 = u + c_skip y - c_out F,
        c_skip = alpha s^2 / (alpha^2 s^2 + sigma^2),
        c_out = sigma s / sqrt(alpha^2 s^2 + sigma^2),

    for a network output F, whose target has unit variance at every t (Karras et al. 2022, arXiv:2206.00364, appendix
    B.6, for a variance-preserving process and data of standard deviation s). With u = 0 and s = 1, F is v.

    Attributes:
        kind: one of `PREDICTION_TYPES`.
        alpha: amplitude of the signal: a number, or a tensor that broadcasts against the level; so is `sigma`.
        sigma: see `alpha`.
        sigma_data: s, of a "residual".
        base: u, in the units of the process, of a "residual".
    """

    kind: str
    alpha: float | torch.Tensor
    sigma: float | torch.Tensor
    sigma_data: float = 1.0
    base: torch.Tensor | None = None

    def clean(self, output: torch.Tensor, sample: torch.Tensor) -> torch.Tensor:
        """x0 of a network output, the shape of both.

        Raises:
            ValueError: an unknown kind; noise predicted from pure noise; a residual over nothing.
        """
        if self.kind == "v_prediction":
            return self.alpha * sample - self.sigma * output
        if self.kind == "epsilon":
            if isinstance(self.alpha, float) and self.alpha == 0:
                raise ValueError(
                    "The timestep is pure noise, where a noise prediction tells nothing of the picture: begin at a "
                    "lower timestep, or use a network that predicts v."
                )
            return (sample - self.sigma * output) / self.alpha
        if self.kind == "sample":
            return output
        base, c_skip, c_out = self._residual()
        return base + c_skip * (sample - self.alpha * base) - c_out * output

    def output(self, clean: torch.Tensor, sample: torch.Tensor) -> torch.Tensor:
        """The network output that stands for the clean level `clean`: the inverse of `clean`."""
        if self.kind == "v_prediction":
            return (self.alpha * sample - clean) / self.sigma
        if self.kind == "epsilon":
            return noise_from_clean(clean, sample, self.alpha, self.sigma)
        if self.kind == "sample":
            return clean
        base, c_skip, c_out = self._residual()
        return (base + c_skip * (sample - self.alpha * base) - clean) / c_out

    def _residual(self) -> tuple[torch.Tensor, float | torch.Tensor, float | torch.Tensor]:
        """u, c_skip and c_out."""
        if self.kind != "residual":
            raise ValueError(f"`prediction_type` is {self.kind!r}; expected one of {', '.join(PREDICTION_TYPES)}.")
        if self.base is None:
            raise ValueError(
                'A "residual" is what a level lacks of the level inside it: it needs the whole pyramid, not one level.'
            )
        s, alpha, sigma = self.sigma_data, self.alpha, self.sigma
        variance = (alpha * s) ** 2 + sigma**2
        return self.base, alpha * s**2 / variance, sigma * s / variance**0.5


class PyramidPredictions(PyramidForwardProcess):
    """The meaning of predictions under the config's `prediction_type`; `MatryoshkaScheduler` takes steps with it.

    A level that predicts a residual needs the clean picture of the level inside it, so levels are gone through from
    the inside out.
    """

    def get_velocity(self, sample: Sample, noise: Sample, timesteps: torch.Tensor) -> torch.Tensor | Pyramid:
        """v^i = alpha_t^i eps^i - sigma_t^i x^i for every level, what a "v_prediction" network learns.

        Arguments as in `add_noise`; `sample` are the clean pictures.
        """
        return self._over_levels(velocity, sample, noise, timesteps)

    def velocities_of(self, model_output: Sample, clean: Sample, sample: Sample, timesteps: torch.Tensor) -> Pyramid:
        """The v that predictions stand for, so that losses of any prediction type compare errors of v.

        A residual is taken over the true picture of the level inside, which is known while a model learns.

        Args:
            model_output: what the network predicted, shapes as `sample`.
            clean: clean pictures of all levels, in [-1, 1].
            sample: z_t of all levels.
            timesteps: `(B_0,)`, or one number for all rows.

        Returns:
            One tensor a level, innermost first; the predictions themselves where the network predicts v.
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
        """Predictions for which `step` finds other clean pictures.

        Args:
            model_output: what the network predicted, shapes as `sample`.
            sample: z_t of all levels.
            timestep: t, one for all rows and levels.
            change: gets the predicted clean picture of a level, `(B, C, H, W)` in about [-1, 1], and gives the one to
                be found instead; the same tensor to leave the level alone.

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
        """Thresholded x0 of every level in [-1, 1], brought together by the strengths of `level_agreement`."""
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
        """What is predicted at each level, and the sigma_data of its residual.

        Raises:
            ValueError: a level alone that is not level 0, of a model whose levels predict unlike things.
        """
        kind = self.config.prediction_type
        if is_alone and ratios[0] > 1 and (kind == "residual" or not isinstance(kind, str)):
            raise ValueError(
                f"`prediction_type` is {kind!r}, which differs from level to level: pass the whole pyramid, not one "
                "level of it."
            )
        return level_predictions(kind, num_levels), level_sigmas(self.config.sigma_data, num_levels)

    def _base(self, kind: str, inner: Pyramid, like: torch.Tensor, ratio: float) -> torch.Tensor | None:
        """What a residual is added to, in the units of the process: the enlarged picture of the level inside."""
        if kind != "residual":
            return None
        rows = in_full_precision(inner[-1][: len(like)])
        return enlarge(rows, like) / self._image_scale(ratio)

    @property
    def _bound(self) -> float | None:
        """What predicted clean pictures stay in, in [-1, 1] for pictures; None for no bound."""
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
    """v_t = sqrt(g) eps - sqrt(1 - g) x / scale (ml-mdm, Schedule / diffusion), arguments as in `noisy_sample`."""
    signal, spread = row_amplitudes(power, clean)
    mixed = signal * in_full_precision(noise) - spread * (in_full_precision(clean) / scale)
    return mixed.to(clean.dtype)
