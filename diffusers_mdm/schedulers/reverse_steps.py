# SPDX-License-Identifier: Apache-2.0
"""The reverse process: the timesteps of sampling, and the step of one level from one of them to the next.

Glossary: as in `predictions`, and g_s = signal power at the timestep after the step (1 after the last one).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import numpy as np
import torch

from ..checked_values import is_number, is_whole_number
from .predictions import amplitudes, noise_from_clean, shift_signal_power

ALGORITHMS = ("ddim", "dpmsolver++")
TIMESTEP_SPACINGS = ("matryoshka", "leading", "trailing", "linspace", "log_snr")

# The ends of "log_snr": log SNRs of level 0 beyond which an image is pure noise, or the noise is invisible. For the
# published schedule of 1000 timesteps these are the timesteps 990 and 2.
LOG_SNR_RANGE = (-8.6, 8.9)


def spaced_timesteps(
    spacing: str, num_inference_steps: int, alphas_cumprod: torch.Tensor, steps_offset: int = 0
) -> list[int]:
    """Return `num_inference_steps` timesteps, highest first, all in [0, num_train_timesteps).

    "matryoshka" is the published models' spacing (ml-mdm, Sampling): N + 1 points spread over the N_train + 1 noise
    levels including the clean one, rounded half to even, the clean one left out; the first step starts a little below
    the highest timestep. "log_snr" is uniform in log SNR, see `even_in_log_snr`. The others are those of diffusers'
    DDIMScheduler ("leading" adds `steps_offset`).

    Args:
        spacing: one of `TIMESTEP_SPACINGS`.
        num_inference_steps: N.
        alphas_cumprod: `(num_train_timesteps,)`, signal power of level 0 at every timestep.
        steps_offset: see above.

    Raises:
        ValueError: the spacing is unknown, there are fewer than one step or more than training timesteps, or the
            offset leaves the range.
    """
    num_train_timesteps = len(alphas_cumprod)
    if not is_whole_number(num_inference_steps, 1, num_train_timesteps):
        raise ValueError(
            f"`num_inference_steps` is {num_inference_steps!r}; the model was trained with {num_train_timesteps} "
            f"timesteps, so expected a whole number between 1 and {num_train_timesteps}."
        )
    steps, total = num_inference_steps, num_train_timesteps
    points: np.ndarray
    if spacing == "matryoshka":
        points = np.round(np.arange(1, steps + 1) * (total + 1) / (steps + 1)) - 1
    elif spacing == "leading":
        points = np.arange(steps) * (total // steps) + steps_offset
    elif spacing == "trailing":
        points = np.round(np.arange(total, 0, -total / steps)[:steps])[::-1] - 1
    elif spacing == "linspace":
        points = np.round(np.linspace(0, total - 1, steps))
    elif spacing == "log_snr":
        points = even_in_log_snr(alphas_cumprod, steps)[::-1]
    else:
        raise ValueError(f"`timestep_spacing` is {spacing!r}; expected one of {', '.join(TIMESTEP_SPACINGS)}.")
    return checked_timesteps([int(point) for point in points[::-1]], num_train_timesteps)


def even_in_log_snr(alphas_cumprod: torch.Tensor, num_inference_steps: int) -> np.ndarray:
    """Return timesteps, highest first, whose log SNRs are as evenly spaced as integer timesteps allow.

    The shift of a level is constant in log SNR, so steps that are even at level 0 are even at every level, as
    DPM-Solver++ assumes (Lu et al. 2022, section 5).

    Args:
        alphas_cumprod: `(T,)`, signal power of level 0, decreasing.
        num_inference_steps: N, at most T.
    """
    power = alphas_cumprod.cpu().double().numpy()
    with np.errstate(divide="ignore"):
        log_snr = np.log(power) - np.log1p(-power)
    lowest, highest = LOG_SNR_RANGE
    within = np.flatnonzero((log_snr >= lowest) & (log_snr <= highest))
    within = within if len(within) else np.arange(len(power))
    targets = np.linspace(log_snr[within[-1]], log_snr[within[0]], num_inference_steps)
    points = np.abs(log_snr[within][None] - targets[:, None]).argmin(1) + within[0]
    # Where timesteps are further apart than the steps would be, each step takes the next unused timestep.
    falling = np.arange(num_inference_steps)
    points = np.minimum.accumulate(points + falling) - falling
    return np.maximum(points, falling[::-1])


def checked_timesteps(timesteps: Sequence[int] | np.ndarray | torch.Tensor, num_train_timesteps: int) -> list[int]:
    """Return `timesteps` as a list of ints.

    Raises:
        ValueError: they are empty, not integers, not strictly decreasing, or outside [0, num_train_timesteps).
    """
    if isinstance(timesteps, torch.Tensor):
        timesteps = timesteps.tolist()
    try:
        values = np.asarray(timesteps)
    except (TypeError, ValueError):  # another type, or lists of unequal lengths
        values = np.asarray(None)
    if values.dtype.kind not in "iuf":
        raise ValueError(f"`timesteps` are of type {type(timesteps).__name__}; expected a list of whole numbers.")
    if values.ndim != 1 or len(values) == 0:
        raise ValueError(f"`timesteps` has shape {values.shape}; expected a list of at least one timestep.")
    if not np.isfinite(values).all() or not np.array_equal(values, np.round(values)):
        raise ValueError(f"`timesteps` must be whole numbers, got {values.tolist()}.")
    whole = [int(value) for value in values]
    if any(later >= earlier for earlier, later in pairwise(whole)):
        raise ValueError(f"`timesteps` must be strictly decreasing, from most noise to least, got {whole}.")
    if whole[0] >= num_train_timesteps or whole[-1] < 0:
        raise ValueError(
            f"`timesteps` run from {whole[0]} to {whole[-1]}; the model was trained on 0 to {num_train_timesteps - 1}."
            " (A `steps_offset` above 0 needs fewer steps.)"
        )
    return whole


def whole_timestep(timestep: int | float | torch.Tensor, num_train_timesteps: int) -> int:
    """Return a timestep as an int.

    Raises:
        ValueError: there are several timesteps, or it is not an integer or outside [0, num_train_timesteps).
    """
    if isinstance(timestep, torch.Tensor):
        if timestep.numel() != 1:
            raise ValueError(
                f"`timestep` has shape {tuple(timestep.shape)}; a reverse step uses one timestep for all samples "
                f"and levels, so pass a single number."
            )
        timestep = timestep.item()
    if not is_number(timestep, 0, num_train_timesteps - 1) or timestep != int(timestep):
        raise ValueError(f"`timestep` is {timestep!r}; expected a whole number from 0 to {num_train_timesteps - 1}.")
    return int(timestep)


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


def reverse_step(
    algorithm: str,
    clean: torch.Tensor,
    sample: torch.Tensor,
    power: float,
    next_power: float,
    eta: float | None,
    noise: torch.Tensor | None,
    earlier: tuple[torch.Tensor, float] | None,
) -> torch.Tensor:
    """Take the reverse step of a level.

    Args:
        algorithm: one of `ALGORITHMS`.
        clean: x0, thresholded.
        sample: x.
        power: g.
        next_power: g_s.
        eta: see `ddim_step`; None for `ancestral_step`.
        noise: N(0, 1) like `sample`; None for no noise.
        earlier: see `dpm_solver_step`.
    """
    if eta is None:
        return ancestral_step(clean, sample, power, next_power, noise)
    if algorithm == "ddim":
        return ddim_step(clean, sample, power, next_power, eta, noise)
    return dpm_solver_step(clean, sample, power, next_power, earlier)


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
