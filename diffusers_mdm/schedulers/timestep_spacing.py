# SPDX-License-Identifier: Apache-2.0
"""Choosing the timesteps for sampling, and checking timesteps that are passed."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import numpy as np
import torch

from ..checked_values import is_number, is_whole_number

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
