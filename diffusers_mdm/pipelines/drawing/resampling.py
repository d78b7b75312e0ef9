# SPDX-License-Identifier: Apache-2.0
"""Resampling (RePaint): adding noise again and repeating steps, so that generated and known pixels fit together.

Lugmayr et al. 2022 (arXiv:2201.09865), section 4.2: a sample with known pixels is diffused back by some steps,
z_t ~ q(z_t | z_s), and denoised again, so that the model can harmonise generated and known pixels.
"""

from __future__ import annotations

from typing import Any

import torch

from diffusers_mdm.pipelines.drawing.setup import Drawing
from diffusers_mdm.pyramid import Pyramid, as_pyramid


def resampled_positions(num_steps: int, num_resampling_steps: int, jump_length: int) -> list[int]:
    """Return which step of a schedule each model call takes.

    The schedule is divided into groups of `jump_length` steps, and each group is run `num_resampling_steps` times,
    except the last steps, since there is no way back from the clean image (RePaint, algorithm 1).

    Args:
        num_steps: length n of the schedule.
        num_resampling_steps: U, how often each group is run; with 1 there is no resampling.
        jump_length: j, the number of steps in a group.

    Returns:
        Indices of steps, e.g. `[0, 0, 1, 1, 2]` for n = 3, U = 2, j = 1.
    """
    positions: list[int] = []
    for start in range(0, num_steps, jump_length):
        stretch = list(range(start, min(start + jump_length, num_steps)))
        repeats = num_resampling_steps if start + jump_length < num_steps else 1
        positions += stretch * repeats
    return positions


def repeat_stretches(drawing: Drawing) -> None:
    """Let the drawing repeat each group of `jump_length` steps, as its request requires."""
    request = drawing.request
    drawing.positions = resampled_positions(len(drawing.timesteps), request.num_resampling_steps, request.jump_length)


def diffuse_from(
    scheduler: Any, sample: torch.Tensor | Pyramid, noise: Pyramid, timestep: torch.Tensor, back_to: torch.Tensor
) -> torch.Tensor | Pyramid:
    """Sample z_t ~ q(z_t | z_s) at every level: sqrt(g_t / g_s) z_s + sqrt(1 - g_t / g_s) eps, g the level's signal
    power.

    Args:
        scheduler: a `MatryoshkaScheduler`.
        sample: z_s.
        noise: eps, N(0, 1), shapes as `sample`.
        timestep: s.
        back_to: t, above s.
    """
    levels, bare = as_pyramid(sample)
    before = scheduler.level_alphas_cumprod(sample, timestep)
    after = scheduler.level_alphas_cumprod(sample, back_to)
    diffused = []
    for level, eps, g_s, g_t in zip(levels, noise, before, after, strict=True):
        kept = (g_t / g_s).reshape(-1, *[1] * (level.ndim - 1))
        diffused.append((kept.sqrt() * level + (1 - kept).sqrt() * eps).to(level.dtype))
    return diffused[0] if bare else diffused
