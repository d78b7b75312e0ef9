# SPDX-License-Identifier: Apache-2.0
"""From clean to noisy, z_t^i = alpha_t^i x^i + sigma_t^i eps^i on every level, which is what training needs of a
scheduler; and back: one reverse step at one level, functions of tensors and of the level's signal power.

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

# A number, or a tensor of them.
Power = TypeVar("Power", float, torch.Tensor)
Powers = TypeVar("Powers", torch.Tensor, np.ndarray)


class PyramidForwardProcess:
    """The forward process of a pyramid; `MatryoshkaScheduler`, which has the config, adds the reverse one.

    Attributes:
        alphas_cumprod: signal power of level 0 at every timestep, `(T,)` float32.
    """

    config: Any
    alphas_cumprod: torch.Tensor
    _moved_table: torch.Tensor | None = None

    def __len__(self) -> int:
        return len(self.alphas_cumprod)

    def _table_on(self, device: torch.device) -> torch.Tensor:
        """`alphas_cumprod` on a device, moved there once."""
        if self.alphas_cumprod.device == device:
            return self.alphas_cumprod
        if self._moved_table is None or self._moved_table.device != device:
            self._moved_table = self.alphas_cumprod.to(device)
        return self._moved_table

    def alpha_cumprod(self, timesteps: torch.Tensor, ratio: float = 1.0) -> torch.Tensor:
        """Signal power (alpha_bar) at a level.

        Args:
            timesteps: whole numbers in [0, T), any shape.
            ratio: of the level to level 0, at least 1 (see `level_ratios`).

        Returns:
            float32 tensor in [0, 1] of the shape of `timesteps`, on their device.
        """
        if timesteps.dtype.is_floating_point or timesteps.dtype.is_complex or timesteps.dtype == torch.bool:
            raise ValueError(f"`timesteps` are {timesteps.dtype}; expected whole numbers.")
        # Looking at values on an accelerator would make every training step wait for it.
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
        """Signal power of every row of every level.

        Args:
            pyramid: levels of `(B_i, ...)`, for their shapes only.
            timesteps: `(B_0,)`, or one number for all rows.

        Returns:
            Tensors `(B_i,)`, float32, innermost level first.
        """
        levels, ratios, _ = self._levels(pyramid, "pyramid")
        timesteps = as_timesteps(timesteps)
        rows = timesteps if timesteps.numel() != 1 else timesteps.reshape(1).expand(len(levels[0]))
        if rows.shape != levels[0].shape[:1]:
            raise ValueError(
                f"`timesteps` has shape {tuple(timesteps.shape)}; expected one timestep, or one for each row of "
                f"level 0: ({len(levels[0])},)."
            )
        return [self.alpha_cumprod(rows[: len(level)], ratio) for level, ratio in zip(levels, ratios, strict=True)]

    def _levels(self, sample: Sample, name: str) -> tuple[Pyramid, list[float], bool]:
        """Levels of a sample, their ratios (at least 1), and whether it was a bare tensor."""
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
        """What a level's pictures are divided by before they are diffused."""
        return ratio if self.config.level_scaling == "rescale" else 1.0

    def add_noise(self, original_samples: Sample, noise: Sample, timesteps: torch.Tensor) -> torch.Tensor | Pyramid:
        """z_t^i = alpha_t^i x^i + sigma_t^i eps^i for every level.

        Args:
            original_samples: clean pictures in [-1, 1].
            noise: N(0, 1) of the same shapes.
            timesteps: `(B_0,)`, level i uses the first B_i of them; or one number for all rows.
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
    """Timesteps for every row, as a tensor.

    Raises:
        ValueError: they are neither a tensor nor numbers.
    """
    try:
        return torch.as_tensor(timesteps)
    except (TypeError, ValueError, RuntimeError) as error:
        raise ValueError(
            f"`timesteps` are of type {type(timesteps).__name__}; expected a tensor of whole numbers, one for each "
            "row of level 0, or a single one."
        ) from error


def noisy_sample(clean: torch.Tensor, noise: torch.Tensor, power: torch.Tensor, scale: float = 1.0) -> torch.Tensor:
    """z_t = sqrt(g) x / scale + sqrt(1 - g) eps (ml-mdm, Schedule / diffusion: x_t).

    Args:
        clean: x, `(B, ...)`, in [-1, 1].
        noise: eps, same shape.
        power: g, signal power of each row, `(B,)`.
        scale: what clean pictures are divided by before they are diffused.
    """
    signal, spread = row_amplitudes(power, clean)
    mixed = signal * (in_full_precision(clean) / scale) + spread * in_full_precision(noise)
    return mixed.to(clean.dtype)


def shift_signal_power(power: Powers, ratio: float, shift_power: float) -> Powers:
    """Signal power at a level whose side is `ratio` times the innermost one's: log SNR_i = log SNR_0 - p log(ratio).

    A larger picture hides less of its content under the same noise, hence the shift (ml-mdm,
    Schedule: shift for scale s > 1). A ratio of 1 gives `power` back untouched.

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
    """Signal power of every timestep at any level, as plain numbers: a reverse step neither makes tensors of them nor
    waits for an accelerator. They are rounded to float32 at each operation, as the published tables are.

    Args:
        alphas_cumprod: `(T,)`, signal power of level 0.
        shift_power: p of the shift by the size of a level; None where levels are not shifted.
    """

    def __init__(self, alphas_cumprod: torch.Tensor, shift_power: float | None) -> None:
        self._innermost = alphas_cumprod.to("cpu", torch.float32).numpy()
        self._shift_power = shift_power
        self._by_ratio: dict[float, list[float]] = {}

    def at(self, timestep: int, ratio: float) -> float:
        """Signal power (alpha_bar) at a level, in [0, 1].

        Args:
            timestep: t, in [0, T).
            ratio: r_i / r_0 of the level; below 1 it counts as 1.

        Raises:
            ValueError: the betas up to this timestep leave no signal power.
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
        # At the ends of a schedule 0 and 1 are divided by 0, and come out as they went in.
        with np.errstate(divide="ignore"):
            shifted = shift_signal_power(self._innermost, max(ratio, 1.0), self._shift_power)
        return [float(power) for power in shifted]


def dynamic_threshold(clean: torch.Tensor, ratio: float, max_value: float) -> torch.Tensor:
    """Clamp each row to its own quantile s of |x0|, 1 <= s <= max_value, and divide by s (Imagen, section 2.3).

    Args:
        clean: `(B, ...)`.
        ratio: which quantile, e.g. 0.995.
        max_value: upper bound of s.
    """
    # Row by row: torch.quantile refuses very large inputs, and a row's result must not depend on its neighbours.
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
    """DDIM (Song et al. 2021, eq. 12 and 16; ml-mdm, Sampling), eps taken from the thresholded x0.

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
    """A draw from q(x_s | x, x0) (Ho et al. 2020, eq. 6 and 7; ml-mdm, Sampling: eta None), arguments as `ddim_step`.

    The distribution of `ddim_step` with eta 1, without its cancellation where x is almost pure noise (5e-5 there).
    """
    g, g_s = _as_published(power), _as_published(next_power)
    clean_weight = (1 - g / g_s) * np.sqrt(g_s) / (1 - g)
    sample_weight = np.sqrt(g / g_s) * (1 - g_s) / (1 - g)
    mean = float(clean_weight[0]) * clean + float(sample_weight[0]) * sample
    if noise is None:
        return mean
    return mean + float(_ancestral_variance(g, g_s)[0]) ** 0.5 * noise


def _as_published(power: float) -> np.ndarray:
    """A power `(1,)`, with which NumPy computes in float32 at each operation, as the published samplers do."""
    return np.array([power], dtype=np.float32)


def _ancestral_variance(g: np.ndarray, g_s: np.ndarray) -> np.ndarray:
    """Variance of q(x_s | x, x0)."""
    return (1 - g / g_s) * (1 - g_s) / (1 - g)


def dpm_solver_step(
    clean: torch.Tensor,
    sample: torch.Tensor,
    power: float,
    next_power: float,
    earlier: tuple[torch.Tensor, float] | None = None,
) -> torch.Tensor:
    """DPM-Solver++(2M) in its midpoint form (Lu et al. 2022, algorithm 2), x_s = sigma_s/sigma x + (alpha_s -
    alpha sigma_s/sigma) D.

    D = x0 makes the step first order (DDIM with eta 0); with the x0 of the step before, D extrapolates linearly in
    lambda = log(alpha / sigma): D = x0 + (h / 2 h_before) (x0 - x0_before).

    Args:
        clean: x0, thresholded.
        sample: x.
        power: g.
        next_power: g_s.
        earlier: x0 of the step before and its signal power; None for a first order step. It is left out where the step
            ends on the clean picture (lambda is infinite there).
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
    """The lambda = log(alpha / sigma); minus infinity where nothing of the picture is left."""
    return 0.5 * (math.log(power) - math.log1p(-power)) if power > 0 else -math.inf


def check_eta(eta: Any) -> None:
    """Refuse an `eta` that is neither None nor a number from 0 to 1."""
    if eta is not None and not is_number(eta, 0, 1):
        raise ValueError(f"`eta` is {eta!r}; expected 0 (deterministic) to 1 (ancestral), or None (ancestral).")


def noise_from_clean(
    clean: torch.Tensor, sample: torch.Tensor, alpha: float | torch.Tensor, sigma: float | torch.Tensor
) -> torch.Tensor:
    """The noise (x - alpha x0) / sigma that `sample` holds if `clean` is its x0."""
    return (sample - alpha * clean) / sigma


def amplitudes(power: Power) -> tuple[Power, Power]:
    """Square roots alpha and sigma of the powers of signal and noise, of the kind and shape of `power`.

    For a tensor alpha is the exponential of half a logarithm: the published rounding, of which a last digit near t = 0
    shows as 6e-6 in a noise that is computed from a prediction.
    """
    if isinstance(power, torch.Tensor):
        return torch.exp(torch.log(power) / 2), (1 - power) ** 0.5
    return power**0.5, (1 - power) ** 0.5


def row_amplitudes(power: torch.Tensor, like: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """The alpha and sigma of each row, shaped to multiply `like`."""
    return amplitudes(power.reshape(-1, *[1] * (like.ndim - 1)))
