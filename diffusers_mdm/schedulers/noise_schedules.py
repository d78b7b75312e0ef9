# SPDX-License-Identifier: Apache-2.0
"""Noise schedules.

Glossary: beta_t = variance added by training step t; alpha_bar_t = signal power = product of (1 - beta) up to t;
SNR = alpha_bar / (1 - alpha_bar); x_t = sqrt(alpha_bar_t) x_0 + sqrt(1 - alpha_bar_t) noise.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
from diffusers.schedulers.scheduling_ddim import rescale_zero_terminal_snr

from ..checked_values import describe

BETA_SCHEDULES = ("squaredcos_cap_v2", "linear", "scaled_linear", "cosine_log_snr", "rectified_flow")

# Largest beta of the capped cosine, as published (ml-mdm, Schedule: DEEPFLOYD).
_MAX_BETA = 0.999


def betas_from_trained(trained_betas: Sequence[float] | np.ndarray) -> torch.Tensor:
    """Convert a list of betas to `(T,)`, float64."""
    try:
        betas = torch.as_tensor(np.asarray(trained_betas, dtype=np.float64))
    except (TypeError, ValueError) as error:
        raise ValueError(
            f"`trained_betas` is {describe(trained_betas)}; expected a list of numbers, one per training timestep."
        ) from error
    if betas.ndim != 1 or len(betas) == 0:
        raise ValueError(f"`trained_betas` has shape {tuple(betas.shape)}; expected one number per training timestep.")
    return betas


def betas_of_family(
    beta_schedule: str,
    num_train_timesteps: int,
    beta_start: float,
    beta_end: float,
    log_snr_max: float,
    log_snr_min: float,
) -> torch.Tensor:
    """Return the betas of a named schedule: `(num_train_timesteps,)`, float64.

    "squaredcos_cap_v2" is the schedule of the published models (ml-mdm, Schedule: DEEPFLOYD; Nichol & Dhariwal 2021,
    eq. 17), "linear" that of DDPM, "scaled_linear" is linear in sqrt(beta), "cosine_log_snr" is a cosine between
    two log SNRs (Hoogeboom et al. 2023, section 3.1), and "rectified_flow" has the log SNR of the straight path from
    image to noise. `beta_start` and `beta_end` apply to the linear schedules, `log_snr_max` (at t = 0) and
    `log_snr_min` (at the last t) to "cosine_log_snr".

    Raises:
        ValueError: the schedule is unknown.
    """
    if beta_schedule == "linear":
        return torch.linspace(beta_start, beta_end, num_train_timesteps, dtype=torch.float64)
    if beta_schedule == "scaled_linear":
        return torch.linspace(beta_start**0.5, beta_end**0.5, num_train_timesteps, dtype=torch.float64) ** 2
    if beta_schedule == "squaredcos_cap_v2":
        return _capped_cosine_betas(num_train_timesteps)
    if beta_schedule == "cosine_log_snr":
        return _log_snr_cosine_betas(num_train_timesteps, log_snr_max, log_snr_min)
    if beta_schedule == "rectified_flow":
        return _rectified_flow_betas(num_train_timesteps)
    raise ValueError(
        f"`beta_schedule` is {beta_schedule!r}; expected one of {', '.join(BETA_SCHEDULES)}, or pass `trained_betas`."
    )


def _capped_cosine_betas(num_train_timesteps: int) -> torch.Tensor:
    """Return beta_t = min(1 - ab(t + 1) / ab(t), 0.999) with ab(s) = cos^2((s / T + 0.008) / 1.008 * pi / 2)."""
    u = torch.arange(num_train_timesteps + 1, dtype=torch.float64) / num_train_timesteps
    power = torch.cos((u + 0.008) / 1.008 * math.pi / 2) ** 2
    return (1 - power[1:] / power[:-1]).clamp(max=_MAX_BETA)


def _log_snr_cosine_betas(num_train_timesteps: int, log_snr_max: float, log_snr_min: float) -> torch.Tensor:
    """Return betas for log SNR(u) = -2 log tan(a u + b), that is alpha_bar(u) = cos^2(a u + b), u from 0 to 1 over
    timesteps.
    """
    if not log_snr_max > log_snr_min:
        raise ValueError(
            f"`log_snr_max` ({log_snr_max}, at the first timestep) must be above `log_snr_min` ({log_snr_min})."
        )
    b = math.atan(math.exp(-log_snr_max / 2))
    a = math.atan(math.exp(-log_snr_min / 2)) - b
    u = torch.linspace(0, 1, num_train_timesteps, dtype=torch.float64)
    return _betas_of_power(torch.cos(a * u + b) ** 2)


def _rectified_flow_betas(num_train_timesteps: int) -> torch.Tensor:
    """Return betas for log SNR = 2 log((1 - s) / s) with s = (t + 1) / T, the share of noise in the straight path
    (1 - s) x + s noise of rectified flow (Liu et al. 2022, arXiv:2209.03003).

    Divided by sqrt((1 - s)^2 + s^2), a point of that path is a sample of this process, whose alpha_bar is (1 - s)^2 /
    ((1 - s)^2 + s^2). The last timestep is pure noise.
    """
    s = torch.arange(1, num_train_timesteps + 1, dtype=torch.float64) / num_train_timesteps
    return _betas_of_power((1 - s) ** 2 / ((1 - s) ** 2 + s**2))


def _betas_of_power(power: torch.Tensor) -> torch.Tensor:
    """Return the betas of a falling alpha_bar `(T,)`, which begins below 1."""
    return 1 - power / torch.cat([power.new_ones(1), power[:-1]])


def zero_terminal_snr(betas: torch.Tensor) -> torch.Tensor:
    """Rescale betas `(T,)` such that the last timestep is pure noise (Lin et al. 2023, alg. 1)."""
    return rescale_zero_terminal_snr(betas)


def signal_power(betas: torch.Tensor) -> torch.Tensor:
    """Compute alpha_bar_t, `(T,)` float32, from betas `(T,)` float64.

    Logarithms are summed in float64 and rounded once at the end, which gives exactly the numbers of ml-mdm (Schedule).
    Betas above 1, which diffusers' schedulers accept, result in NaN from their timestep on.

    Raises:
        ValueError: a beta is negative or NaN.
    """
    if not bool((betas >= 0).all()):
        raise ValueError(f"The betas run from {betas.min():g} to {betas.max():g}; expected numbers from 0 to 1.")
    return torch.exp(torch.cumsum(torch.log(1 - betas), dim=0)).to(torch.float32)
