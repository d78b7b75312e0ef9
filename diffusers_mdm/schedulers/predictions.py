# SPDX-License-Identifier: Apache-2.0
"""What is predicted at each level: converting network outputs to clean samples and back, for reverse steps and losses
alike.

Glossary: x = sample at timestep t; x0 = its clean sample; eps = noise in x; g = signal power (alpha_bar) at t; alpha =
sqrt(g), sigma = sqrt(1 - g); v = alpha eps - sigma x0.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
import torch

from ..pyramid import Pyramid, as_pyramid, check_pyramid, check_tensor, in_full_precision, level_ratios
from .block_averages import enlarge
from .level_agreement import agree

Sample = torch.Tensor | Sequence[torch.Tensor]

# A number, or a tensor of numbers.
Power = TypeVar("Power", float, torch.Tensor)
Powers = TypeVar("Powers", torch.Tensor, np.ndarray)

PREDICTION_TYPES = ("v_prediction", "epsilon", "sample", "residual", "sample_residual")
# Those that are relative to the enlarged clean image of the level inside.
RESIDUALS = ("residual", "sample_residual")


def level_predictions(prediction_type: str | Sequence[str], num_levels: int) -> list[str]:
    """Return the prediction type of each of the inner `num_levels` levels, innermost first.

    Args:
        prediction_type: one for all levels, or one per level, innermost first; those of missing outer levels are
            ignored. A single "residual" applies to the outer levels, with v-prediction at level 0; likewise a single
            "sample_residual", with "sample" there.
        num_levels: at least 1.

    Raises:
        ValueError: fewer than there are levels.
    """
    if isinstance(prediction_type, str):
        innermost = {"residual": "v_prediction", "sample_residual": "sample"}.get(prediction_type, prediction_type)
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

    "sample_residual": x0 = u + s F, so F is r / s whatever t is. The network need not pass on the noise, and where
    the image is flat, r and so F is 0. With u = 0 and s = 1, F is the sample.

    Attributes:
        kind: one of `PREDICTION_TYPES`.
        alpha: amplitude of the signal: a number, or a tensor that broadcasts against the level.
        sigma: amplitude of the noise; like `alpha`.
        sigma_data: s, for both residuals.
        base: u, in the units of the process, for both residuals.
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
        if self.kind == "sample_residual":
            return self._known_base() + self.sigma_data * output
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
        if self.kind == "sample_residual":
            return (clean - self._known_base()) / self.sigma_data
        base, c_skip, c_out = self._residual()
        return (base + c_skip * (sample - self.alpha * base) - clean) / c_out

    def _residual(self) -> tuple[torch.Tensor, float | torch.Tensor, float | torch.Tensor]:
        """Return u, c_skip and c_out."""
        if self.kind != "residual":
            raise ValueError(f"`prediction_type` is {self.kind!r}; expected one of {', '.join(PREDICTION_TYPES)}.")
        s, alpha, sigma = self.sigma_data, self.alpha, self.sigma
        variance = (alpha * s) ** 2 + sigma**2
        return self._known_base(), alpha * s**2 / variance, sigma * s / variance**0.5

    def _known_base(self) -> torch.Tensor:
        if self.base is None:
            raise ValueError(
                f'A "{self.kind}" is relative to the level inside it, so it needs the whole pyramid, not one level.'
            )
        return self.base


def error_factor(kind: str, power: torch.Tensor, sigma_data: float = 1.0) -> torch.Tensor | None:
    """Return the factors that convert squared errors of v to those of a network's output.

    Args:
        kind: one of `PREDICTION_TYPES`.
        power: g of each sample, `(B,)`.
        sigma_data: s, for both residuals.

    Returns:
        `(B,)`; None for v itself.
    """
    if kind == "v_prediction":
        return None
    if kind == "residual":
        return power + (1 - power) / sigma_data**2
    if kind == "sample_residual":
        return (1 - power) / sigma_data**2
    return power if kind == "epsilon" else 1 - power


class PyramidPredictions:
    """Conversion of predictions according to the config's `prediction_type`, as a base class of `MatryoshkaScheduler`.

    A level that predicts a residual needs the clean image of the level inside it, so levels are processed from the
    inside out.

    Attributes:
        alphas_cumprod: signal power (alpha_bar) of level 0 at every timestep, `(T,)` float32.
    """

    config: Any
    alphas_cumprod: torch.Tensor

    def __len__(self) -> int:
        return len(self.alphas_cumprod)

    def _levels(self, sample: Sample, name: str) -> tuple[Pyramid, list[float], bool]:
        """Return the levels of a sample, their ratios (at least 1), and whether it was a bare tensor."""
        levels, bare = as_pyramid(sample)
        for level in levels:
            check_tensor(level, name, "a pyramid, or one level", is_floating=True)
        if bare and levels[0].ndim < 2:
            raise ValueError(
                f"`{name}` has shape {tuple(levels[0].shape)}; expected (batch, channels, height, width), or (batch, "
                "channels, frames, height, width) for clips."
            )
        if not bare:
            check_pyramid(levels, name=name)
            return levels, level_ratios(levels), False
        side = min(levels[0].shape[-2:])
        return levels, [max(side / self.config.base_sample_size, 1.0)], True

    def _image_scale(self, ratio: float) -> float:
        """Return the number by which a level's images are divided before noise is added."""
        return ratio if self.config.level_scaling == "rescale" else 1.0

    def _clean_images(
        self, outputs: Pyramid, samples: Pyramid, powers: Sequence[float], ratios: list[float], strengths: list[float]
    ) -> Pyramid:
        """Return the thresholded x0 of every level in [-1, 1], after applying `level_agreement`."""
        kinds, sigmas = self._kinds(len(samples), ratios, len(samples) == 1)
        images: Pyramid = []
        for index, (output, level, ratio) in enumerate(zip(outputs, samples, ratios, strict=True)):
            base = self._base(kinds[index], images, level, ratio)
            meaning = LevelPrediction(kinds[index], *amplitudes(powers[index]), sigmas[index], base)
            clean = meaning.clean(in_full_precision(output), in_full_precision(level))
            image = self._threshold(clean * self._image_scale(ratio))
            strength = strengths[index - 1] if index and strengths else 0.0
            if strength:
                image = agree([images[-1], image], [strength], self._bound)[-1]
            images.append(image)
        return images

    def _kinds(self, num_levels: int, ratios: list[float], is_alone: bool) -> tuple[list[str], list[float]]:
        """Return the prediction type and sigma_data of each level.

        Raises:
            ValueError: a single level other than level 0, if the levels have different prediction types.
        """
        kind = self.config.prediction_type
        if is_alone and ratios[0] > 1 and (kind in RESIDUALS or not isinstance(kind, str)):
            raise ValueError(
                f"`prediction_type` is {kind!r}, which differs from level to level: pass the whole pyramid, not one "
                "level of it."
            )
        return level_predictions(kind, num_levels), level_sigmas(self.config.sigma_data, num_levels)

    def _base(self, kind: str, inner: Pyramid, like: torch.Tensor, ratio: float) -> torch.Tensor | None:
        """Return the base of a residual, in the units of the process: the enlarged image of the level inside."""
        if kind not in RESIDUALS:
            return None
        image = in_full_precision(inner[-1][: len(like)])
        return enlarge(image, like) / self._image_scale(ratio)

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


def dynamic_threshold(clean: torch.Tensor, ratio: float, max_value: float) -> torch.Tensor:
    """Clamp each sample to its own quantile s of |x0|, 1 <= s <= max_value, and divide by s (Imagen, section 2.3).

    Args:
        clean: `(B, ...)`.
        ratio: the quantile, e.g. 0.995.
        max_value: upper bound of s.
    """
    # One sample at a time: torch.quantile refuses very large inputs, and results must not depend on the rest of the
    # batch.
    quantiles = torch.stack([torch.quantile(sample.abs().flatten(), ratio) for sample in clean])
    bound = quantiles.clamp(min=1, max=max_value).reshape(-1, *[1] * (clean.ndim - 1))
    return clean.clamp(-bound, bound) / bound


def shift_signal_power(power: Powers, ratio: float, shift_power: float) -> Powers:
    """Shift signal power to a level whose side is `ratio` times that of level 0: log SNR_i = log SNR_0 - p log(ratio).

    The same noise hides less of the content of a larger image, hence the shift (ml-mdm, Schedule: shift for scale s >
    1). With a ratio of 1, `power` is returned unchanged.

    Args:
        power: alpha_bar of level 0, any shape, in [0, 1].
        ratio: r_i / r_0, at least 1.
        shift_power: p.
    """
    if ratio == 1:
        return power
    snr = power / (1 - power) / ratio**shift_power
    return 1 / (1 + 1 / snr)


def noise_from_clean(
    clean: torch.Tensor, sample: torch.Tensor, alpha: float | torch.Tensor, sigma: float | torch.Tensor
) -> torch.Tensor:
    """Return the noise (x - alpha x0) / sigma in `sample`, given its x0 `clean`."""
    return (sample - alpha * clean) / sigma


def amplitudes(power: Power) -> tuple[Power, Power]:
    """Return alpha and sigma, the square roots of the powers of signal and noise, with the type and shape of `power`.

    For tensors, alpha is computed as the exponential of half a logarithm, which is the published rounding: near t = 0,
    its last digit changes noise that is computed from a prediction by 6e-6.
    """
    if isinstance(power, torch.Tensor):
        return torch.exp(torch.log(power) / 2), (1 - power) ** 0.5
    return power**0.5, (1 - power) ** 0.5


def amplitudes_per_sample(power: torch.Tensor, like: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Return alpha and sigma of each sample, in shapes that broadcast against `like`."""
    return amplitudes(power.reshape(-1, *[1] * (like.ndim - 1)))
