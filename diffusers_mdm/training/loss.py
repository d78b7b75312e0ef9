# SPDX-License-Identifier: Apache-2.0
"""The pyramid loss: one denoising error per level, each averaged over its own rows, summed with level weights.

Glossary: x clean level, eps its noise, alpha = the level's signal power (`alphas_cumprod` after its shift),
z = sqrt(alpha) x + sqrt(1 - alpha) eps the noisy level, v = sqrt(alpha) eps - sqrt(1 - alpha) x the prediction.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from ..pyramid import Pyramid
from ..schedulers.scheduling_matryoshka import MatryoshkaScheduler


@dataclass(frozen=True)
class PyramidLoss:
    """What one batch costs.

    total: scalar to minimise.
    per_level: scalar means over each level's own rows, before level weights, innermost first.
    per_row: (B_0,), whose mean is `total`; rows that a level lacks count zero there, the others B_0 / B_i times.
    """

    total: torch.Tensor
    per_level: tuple[torch.Tensor, ...]
    per_row: torch.Tensor


def pyramid_loss(
    predictions: Pyramid,
    velocities: Pyramid,
    alphas: Sequence[torch.Tensor],
    level_weights: Sequence[float],
    weighting: str = "epsilon",
) -> PyramidLoss:
    """Sum over levels i of w_i * mean over its B_i rows of the prediction error (eq. 5 of the paper).

    Args:
        predictions: v as the model predicts it, element i (B_i, C, H_i, W_i), innermost first.
        velocities: the true v, same shapes.
        alphas: signal power of every row, element i (B_i,).
        level_weights: w_i, innermost first.
        weighting: "v": mean squared error of v. "epsilon": that times alpha, which equals the mean squared error of
            the noise that v implies (ml-mdm's DDPM target), because eps^ - eps = sqrt(alpha) (v^ - v).
    """
    if weighting not in ("epsilon", "v"):
        raise ValueError(f"`weighting` must be 'epsilon' or 'v', got {weighting!r}.")
    num_rows = predictions[0].shape[0]
    per_row = predictions[0].new_zeros(num_rows, dtype=torch.float32)
    per_level = []
    for prediction, velocity, alpha, weight in zip(predictions, velocities, alphas, level_weights, strict=True):
        errors = (prediction.float() - velocity.float()).square().flatten(1).mean(1)
        if weighting == "epsilon":
            errors = errors * alpha.to(errors)
        per_level.append(errors.mean())
        rows = errors.shape[0]
        spread = torch.nn.functional.pad(errors, (0, num_rows - rows)) * (num_rows / rows)
        per_row = per_row + weight * spread
    return PyramidLoss(total=per_row.mean(), per_level=tuple(per_level), per_row=per_row)


def vdm_weights(scheduler: MatryoshkaScheduler, timesteps: torch.Tensor) -> torch.Tensor:
    """SNR(t - 1) / SNR(t) - 1 of level 0, (B,): the weights of the variational bound, as ml-mdm's option has them.

    t = 0 has no step before it and takes the weight of t = 1.
    """
    timesteps = timesteps.clamp(min=1)
    alphas = scheduler.alphas_cumprod.to(device=timesteps.device, dtype=torch.float32)
    snr = alphas / (1 - alphas)
    return snr[timesteps - 1] / snr[timesteps] - 1


def vdm_weighted_total(per_row: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
    """Mean of the rows' losses weighted by `vdm_weights`: sum(w l) / sum(w)."""
    return (weights * per_row).sum() / weights.sum()


def thin_rows(pyramid: Pyramid, rows_per_level: Sequence[int]) -> Pyramid:
    """Keep the first `rows_per_level[i]` rows of level i (mixed-resolution batches)."""
    return [level[:rows] for level, rows in zip(pyramid, rows_per_level, strict=True)]
