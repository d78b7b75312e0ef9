# SPDX-License-Identifier: Apache-2.0
"""The forward process z_t^i = alpha_t^i x^i + sigma_t^i eps^i of all levels, and reverse steps of a single level.

Glossary: x = sample at timestep t; x0 = its clean sample; eps = noise in x; g = signal power (alpha_bar) at t, g_s =
that at the timestep after the step (1 after the last one); alpha = sqrt(g), sigma = sqrt(1 - g).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import numpy as np
import torch

from ..checked_values import is_number
from ..pyramid import (
    Pyramid,
    as_pyramid,
    check_pyramid,
    check_tensor,
    in_full_precision,
    level_ratios,
    matching_levels,
)

Sample = torch.Tensor | Sequence[torch.Tensor]

# A number, or a tensor of numbers.
Power = TypeVar("Power", float, torch.Tensor)
Powers = TypeVar("Powers", torch.Tensor, np.ndarray)


class PyramidForwardProcess:
    """The forward process of a pyramid, as a base class of `MatryoshkaScheduler`, which adds the config and the
    reverse process.

    Attributes:
        alphas_cumprod: signal power (alpha_bar) of level 0 at every timestep, `(T,)` float32.
    """

    config: Any
    alphas_cumprod: torch.Tensor
    _moved_table: torch.Tensor | None = None

    def __len__(self) -> int:
        return len(self.alphas_cumprod)

    def _table_on(self, device: torch.device) -> torch.Tensor:
        """Return `alphas_cumprod` on a device, to which it is moved only once."""
        if self.alphas_cumprod.device == device:
            return self.alphas_cumprod
        if self._moved_table is None or self._moved_table.device != device:
            self._moved_table = self.alphas_cumprod.to(device)
        return self._moved_table

    def alpha_cumprod(self, timesteps: torch.Tensor, ratio: float = 1.0) -> torch.Tensor:
        """Return the signal power (alpha_bar) of a level.

        Args:
            timesteps: integers in [0, T), any shape.
            ratio: ratio of the level to level 0, at least 1 (see `level_ratios`).

        Returns:
            A float32 tensor in [0, 1] with the shape and device of `timesteps`.
        """
        if timesteps.dtype.is_floating_point or timesteps.dtype.is_complex or timesteps.dtype == torch.bool:
            raise ValueError(f"`timesteps` are {timesteps.dtype}; expected whole numbers.")
        # Reading values on an accelerator would make every training step wait for it.
        if timesteps.device.type == "cpu" and timesteps.numel():
            low, high = int(timesteps.min()), int(timesteps.max())
            if low < 0 or high >= len(self):
                raise ValueError(f"`timesteps` run from {low} to {high}; expected 0 to {len(self) - 1}.")
            if self.alphas_cumprod[high].isnan():
                raise ValueError(
                    f"Timestep {high} has no signal power, because betas up to it exceed 1; lower `beta_end` or "
                    "correct `trained_betas`."
                )
        power = self._table_on(timesteps.device)[timesteps.long()]
        if self.config.level_scaling == "rescale":
            return power
        return shift_signal_power(power, max(ratio, 1.0), self.config.shift_power)

    def level_alphas_cumprod(self, pyramid: Sample, timesteps: torch.Tensor) -> list[torch.Tensor]:
        """Return the signal power (alpha_bar) of every sample of every level.

        Args:
            pyramid: levels `(B_i, ...)`, of which only the shapes are used.
            timesteps: `(B_0,)`, or one number for all samples.

        Returns:
            Tensors `(B_i,)`, float32, innermost level first.
        """
        levels, ratios, _ = self._levels(pyramid, "pyramid")
        timesteps = as_timesteps(timesteps)
        rows = timesteps if timesteps.numel() != 1 else timesteps.reshape(1).expand(len(levels[0]))
        if rows.shape != levels[0].shape[:1]:
            raise ValueError(
                f"`timesteps` has shape {tuple(timesteps.shape)}; expected one timestep, or one for each sample of "
                f"level 0: ({len(levels[0])},)."
            )
        return [self.alpha_cumprod(rows[: len(level)], ratio) for level, ratio in zip(levels, ratios, strict=True)]

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

    def add_noise(self, original_samples: Sample, noise: Sample, timesteps: torch.Tensor) -> torch.Tensor | Pyramid:
        """Compute z_t^i = alpha_t^i x^i + sigma_t^i eps^i for every level.

        Args:
            original_samples: clean images in [-1, 1].
            noise: N(0, 1) noise of the same shapes.
            timesteps: `(B_0,)`, of which level i uses the first B_i; or one number for all samples.
        """
        return self._over_levels(noisy_sample, original_samples, noise, timesteps)

    def _over_levels(
        self, mix: Callable[..., torch.Tensor], clean: Sample, noise: Sample, timesteps: torch.Tensor
    ) -> torch.Tensor | Pyramid:
        levels, ratios, bare = self._levels(clean, "the clean sample")
        noises = matching_levels(noise, levels, "noise")
        powers = self.level_alphas_cumprod(clean, as_timesteps(timesteps).to(levels[0].device))
        mixed = [
            mix(level, eps, power, self._image_scale(ratio))
            for level, eps, power, ratio in zip(levels, noises, powers, ratios, strict=True)
        ]
        return mixed[0] if bare else mixed


def as_timesteps(timesteps: Any) -> torch.Tensor:
    """Convert timesteps to a tensor.

    Raises:
        ValueError: they are neither a tensor nor numbers.
    """
    try:
        return torch.as_tensor(timesteps)
    except (TypeError, ValueError, RuntimeError) as error:
        raise ValueError(
            f"`timesteps` are of type {type(timesteps).__name__}; expected a tensor of whole numbers, one for each "
            f"sample of level 0, or a single number."
        ) from error


def noisy_sample(clean: torch.Tensor, noise: torch.Tensor, power: torch.Tensor, scale: float = 1.0) -> torch.Tensor:
    """Compute z_t = sqrt(g) x / scale + sqrt(1 - g) eps (ml-mdm, Schedule / diffusion: x_t).

    Args:
        clean: x, `(B, ...)`, in [-1, 1].
        noise: eps, same shape.
        power: g, signal power of each sample, `(B,)`.
        scale: the number by which clean images are divided before noise is added.
    """
    signal, spread = row_amplitudes(power, clean)
    mixed = signal * (in_full_precision(clean) / scale) + spread * in_full_precision(noise)
    return mixed.to(clean.dtype)


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


class LevelPowers:
    """Signal power of every timestep at any level, as Python numbers, so that reverse steps do not wait for an
    accelerator.

    The numbers are rounded to float32 at each operation, like the published tables.

    Args:
        alphas_cumprod: `(T,)`, signal power of level 0.
        shift_power: p of the shift by the size of a level; None for no shift.
    """

    def __init__(self, alphas_cumprod: torch.Tensor, shift_power: float | None) -> None:
        self._innermost = alphas_cumprod.to("cpu", torch.float32).numpy()
        self._shift_power = shift_power
        self._by_ratio: dict[float, list[float]] = {}

    def at(self, timestep: int, ratio: float) -> float:
        """Return the signal power (alpha_bar) of a level, in [0, 1].

        Args:
            timestep: t, in [0, T).
            ratio: r_i / r_0 of the level; values below 1 count as 1.

        Raises:
            ValueError: the signal power is undefined, because betas up to this timestep exceed 1.
        """
        if ratio not in self._by_ratio:
            self._by_ratio[ratio] = self._of_level(ratio)
        power = self._by_ratio[ratio][timestep]
        if power != power:  # NaN
            raise ValueError(
                f"Timestep {timestep} has no signal power, because betas up to it exceed 1; lower `beta_end` or "
                "correct `trained_betas`."
            )
        return power

    def _of_level(self, ratio: float) -> list[float]:
        if self._shift_power is None:
            return [float(power) for power in self._innermost]
        # At the ends of a schedule 0 and 1 are divided by 0, but the results are again 0 and 1.
        with np.errstate(divide="ignore"):
            shifted = shift_signal_power(self._innermost, max(ratio, 1.0), self._shift_power)
        return [float(power) for power in shifted]


def dynamic_threshold(clean: torch.Tensor, ratio: float, max_value: float) -> torch.Tensor:
    """Clamp each sample to its own quantile s of |x0|, 1 <= s <= max_value, and divide by s (Imagen, section 2.3).

    Args:
        clean: `(B, ...)`.
        ratio: the quantile, e.g. 0.995.
        max_value: upper bound of s.
    """
    # One sample at a time: torch.quantile refuses very large inputs, and results must not depend on the rest of the
    # batch.
    quantiles = torch.stack([torch.quantile(row.abs().flatten(), ratio) for row in clean])
    bound = quantiles.clamp(min=1, max=max_value).reshape(-1, *[1] * (clean.ndim - 1))
    return clean.clamp(-bound, bound) / bound


def ddim_step(
    clean: torch.Tensor,
    sample: torch.Tensor,
    power: float,
    next_power: float,
    eta: float = 0.0,
    noise: torch.Tensor | None = None,
) -> torch.Tensor:
    """Take a DDIM step (Song et al. 2021, eq. 12 and 16; ml-mdm, Sampling), with eps computed from the thresholded x0.

    Args:
        clean: x0, thresholded.
        sample: x.
        power: g.
        next_power: g_s.
        eta: 0 is deterministic, 1 is ancestral DDPM; scales the standard deviation of the injected noise.
        noise: N(0, 1) like `sample`; None for no noise.
    """
    alpha, sigma = amplitudes(power)
    next_alpha, next_sigma = amplitudes(next_power)
    eps = noise_from_clean(clean, sample, alpha, sigma)
    if noise is None:
        return next_alpha * clean + next_sigma * eps
    g, g_s = _as_published(power), _as_published(next_power)
    variance = _ancestral_variance(g, g_s) * eta**2
    kept = np.maximum(1 - g_s - variance, 0)
    return next_alpha * clean + float(kept[0]) ** 0.5 * eps + float(variance[0]) ** 0.5 * noise


def ancestral_step(
    clean: torch.Tensor, sample: torch.Tensor, power: float, next_power: float, noise: torch.Tensor | None
) -> torch.Tensor:
    """Sample from q(x_s | x, x0) (Ho et al. 2020, eq. 6 and 7; ml-mdm, Sampling: eta None); arguments as for
    `ddim_step`.

    The distribution is that of `ddim_step` with eta 1, without its cancellation error if x is almost pure noise
    (5e-5).
    """
    g, g_s = _as_published(power), _as_published(next_power)
    clean_weight = (1 - g / g_s) * np.sqrt(g_s) / (1 - g)
    sample_weight = np.sqrt(g / g_s) * (1 - g_s) / (1 - g)
    mean = float(clean_weight[0]) * clean + float(sample_weight[0]) * sample
    if noise is None:
        return mean
    return mean + float(_ancestral_variance(g, g_s)[0]) ** 0.5 * noise


def _as_published(power: float) -> np.ndarray:
    """Return a power as an array `(1,)`, so that NumPy rounds each operation to float32, like the published
    samplers.
    """
    return np.array([power], dtype=np.float32)


def _ancestral_variance(g: np.ndarray, g_s: np.ndarray) -> np.ndarray:
    """Return the variance of q(x_s | x, x0)."""
    return (1 - g / g_s) * (1 - g_s) / (1 - g)


def dpm_solver_step(
    clean: torch.Tensor,
    sample: torch.Tensor,
    power: float,
    next_power: float,
    earlier: tuple[torch.Tensor, float] | None = None,
) -> torch.Tensor:
    """Take a step of DPM-Solver++(2M) in its midpoint form (Lu et al. 2022, algorithm 2).

    x_s = sigma_s/sigma x + (alpha_s - alpha sigma_s/sigma) D. With D = x0 the step is of first order (DDIM with eta
    0); with the x0 of the previous step, D is extrapolated linearly in lambda = log(alpha / sigma): D = x0 + (h / 2
    h_before) (x0 - x0_before).

    Args:
        clean: x0, thresholded.
        sample: x.
        power: g.
        next_power: g_s.
        earlier: x0 of the previous step and its signal power; None for a first-order step. Ignored for the step to the
            clean image, where lambda is infinite.
    """
    direction = clean
    if earlier is not None and next_power < 1:
        earlier_clean, earlier_power = earlier
        here = _half_log_snr(power)
        step, step_before = _half_log_snr(next_power) - here, here - _half_log_snr(earlier_power)
        direction = clean + 0.5 * step / step_before * (clean - earlier_clean)
    alpha, sigma = amplitudes(power)
    next_alpha, next_sigma = amplitudes(next_power)
    shrink = next_sigma / sigma
    return shrink * sample + (next_alpha - alpha * shrink) * direction


def _half_log_snr(power: float) -> float:
    """Return lambda = log(alpha / sigma); minus infinity for pure noise."""
    return 0.5 * (math.log(power) - math.log1p(-power)) if power > 0 else -math.inf


def check_eta(eta: Any) -> None:
    """Check that `eta` is None or a number from 0 to 1."""
    if eta is not None and not is_number(eta, 0, 1):
        raise ValueError(f"`eta` is {eta!r}; expected 0 (deterministic) to 1 (ancestral), or None (ancestral).")


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


def row_amplitudes(power: torch.Tensor, like: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Return alpha and sigma of each sample, in shapes that broadcast against `like`."""
    return amplitudes(power.reshape(-1, *[1] * (like.ndim - 1)))
