# SPDX-License-Identifier: Apache-2.0
"""The pyramid loss: one denoising error a level, each the mean over the level's own batch rows, summed with weights.

Glossary: x clean level, eps its noise, alpha = the level's signal power (`alphas_cumprod` after its shift),
z = sqrt(alpha) x + sqrt(1 - alpha) eps the noisy level, v = sqrt(alpha) eps - sqrt(1 - alpha) x the prediction.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from ...pyramid import Pyramid
from .weights import error_weights


@dataclass(frozen=True)
class PyramidLoss:
    """What one batch costs.

    total: scalar to minimise.
    per_level: scalar means over each level's own batch rows, innermost first, with the weights that depend on t, and
        without level weights and row weights: what a level has learnt, whatever it counts for.
    per_row: (B_0,), whose mean is `total`; rows that a level lacks count zero there, the others B_0 / B_i times.
    row_errors: (B_i,) of each level, detached; `per_level` are their means.
    """

    total: torch.Tensor
    per_level: tuple[torch.Tensor, ...]
    per_row: torch.Tensor
    row_errors: tuple[torch.Tensor, ...]


def pyramid_loss(
    predictions: Pyramid,
    velocities: Pyramid,
    alphas: Sequence[torch.Tensor],
    level_weights: Sequence[float],
    weighting: str = "epsilon",
    snr_gamma: float | None = None,
    row_weights: torch.Tensor | None = None,
) -> PyramidLoss:
    """Sum over levels i of w_i * mean over its B_i rows b of r_b u_i(t_b) |v^ - v|^2 (eq. 5 of the paper).

    Args:
        predictions: v as the model predicts it, element i (B_i, C, H_i, W_i), innermost first.
        velocities: the true v, same shapes.
        alphas: signal power of every batch row, element i (B_i,).
        level_weights: w_i, innermost first.
        weighting: u_i, "v": 1. "epsilon": alpha, which turns the error of v into that of the noise it implies, because
            eps^ - eps = sqrt(alpha) (v^ - v).
        snr_gamma: bend u_i by Min-SNR-gamma; see `error_weights`.
        row_weights: r_b, (B_0,), e.g. the weight of prior preservation (DreamBooth) for the batch rows of its class.
            They multiply, and are not divided by their sum: a row's gradient does not depend on the other rows.
    """
    num_rows = predictions[0].shape[0]
    if row_weights is not None and row_weights.shape != (num_rows,):
        raise ValueError(
            f"`row_weights` has shape {tuple(row_weights.shape)}; expected one for each batch row, ({num_rows},)."
        )
    per_row = predictions[0].new_zeros(num_rows, dtype=torch.float32)
    row_errors = []
    for prediction, velocity, alpha, weight in zip(predictions, velocities, alphas, level_weights, strict=True):
        errors = (prediction.float() - velocity.float()).square().flatten(1).mean(1)
        timestep_weights = error_weights(alpha.to(errors), weighting, snr_gamma)
        if timestep_weights is not None:
            errors = errors * timestep_weights
        row_errors.append(errors)
        rows = errors.shape[0]
        spread = torch.nn.functional.pad(errors, (0, num_rows - rows)) * (num_rows / rows)
        per_row = per_row + weight * spread
    if row_weights is not None:
        per_row = per_row * row_weights.to(per_row)
    return PyramidLoss(
        total=per_row.mean(),
        per_level=tuple(errors.mean() for errors in row_errors),
        per_row=per_row,
        row_errors=tuple(errors.detach() for errors in row_errors),
    )


def thin_rows(pyramid: Pyramid, rows_per_level: Sequence[int]) -> Pyramid:
    """Keep the first `rows_per_level[i]` rows of level i (mixed-resolution batches)."""
    return [level[:rows] for level, rows in zip(pyramid, rows_per_level, strict=True)]
