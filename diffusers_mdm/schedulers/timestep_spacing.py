# SPDX-License-Identifier: Apache-2.0
"""Which of the training timesteps a sampler visits."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import numpy as np
import torch

TIMESTEP_SPACINGS = ("matryoshka", "leading", "trailing", "linspace")


def spaced_timesteps(spacing: str, num_inference_steps: int, num_train_timesteps: int, steps_offset: int) -> list[int]:
    """`num_inference_steps` timesteps, highest first, all in [0, num_train_timesteps).

    "matryoshka" is the published models' spacing (ml-mdm, Sampling): N + 1 points spread over the N_train + 1 noise
    levels including the clean one, rounded half to even, the clean one left out; the first step starts a little below
    the highest timestep. The others are those of diffusers' DDIMScheduler ("leading" adds `steps_offset`).

    Raises:
        ValueError: unknown spacing, fewer than one step, more steps than training timesteps, or an offset that leaves
            the range.
    """
    if not 1 <= num_inference_steps <= num_train_timesteps:
        raise ValueError(
            f"`num_inference_steps` is {num_inference_steps}; the model was trained with {num_train_timesteps} "
            f"timesteps, so expected a number between 1 and {num_train_timesteps}."
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
    else:
        raise ValueError(f"`timestep_spacing` is {spacing!r}; expected one of {', '.join(TIMESTEP_SPACINGS)}.")
    return checked_timesteps([int(point) for point in points[::-1]], num_train_timesteps)


def checked_timesteps(timesteps: Sequence[int] | np.ndarray | torch.Tensor, num_train_timesteps: int) -> list[int]:
    """`timesteps` as a list of ints.

    Raises:
        ValueError: empty, not whole numbers, not strictly falling, or outside [0, num_train_timesteps).
    """
    values = np.asarray(timesteps.cpu() if isinstance(timesteps, torch.Tensor) else timesteps)
    if values.ndim != 1 or len(values) == 0:
        raise ValueError(f"`timesteps` has shape {values.shape}; expected a list of at least one timestep.")
    if not np.array_equal(values, np.round(values)):
        raise ValueError(f"`timesteps` must be whole numbers, got {values.tolist()}.")
    whole = [int(value) for value in values]
    if any(later >= earlier for earlier, later in pairwise(whole)):
        raise ValueError(f"`timesteps` must fall strictly, from most noise to least, got {whole}.")
    if whole[0] >= num_train_timesteps or whole[-1] < 0:
        raise ValueError(
            f"`timesteps` run from {whole[0]} to {whole[-1]}; the model was trained on 0 to {num_train_timesteps - 1}."
            " (A `steps_offset` above 0 needs fewer steps.)"
        )
    return whole
