# SPDX-License-Identifier: Apache-2.0
"""The pyramid loss: a weighted sum over levels of the mean error of each level; and tables of errors by level and t.

Glossary: x clean level, eps its noise, alpha = the level's signal power (`alphas_cumprod` after its shift), z =
sqrt(alpha) x + sqrt(1 - alpha) eps the noisy level, v = sqrt(alpha) eps - sqrt(1 - alpha) x the prediction, SNR =
alpha / (1 - alpha). The error of v determines other errors: that of the noise is alpha |v^ - v|^2, that of the clean
image (1 - alpha) |v^ - v|^2.

A mean over all t hides at which noise levels errors are large, so tables have quartiles: quartile 1 has the lowest t
(almost clean), quartile 4 the highest (almost noise). Tables can be added over micro-batches, steps and processes.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from ...pyramid import Pyramid
from ..recipe.stage import StageRecipe

# The values of `loss_weighting`, with a description of the squared error that each amounts to.
WEIGHTINGS = {
    "epsilon": "of the noise",
    "v": "of v",
    "sample": "of the clean image",
    "prediction": "of what each level predicts",
}
NUM_QUARTILES = 4


@dataclass(frozen=True)
class PyramidLoss:
    """The loss of a batch.

    total: scalar to minimise. per_level: scalar mean over each level's own samples, innermost first, with the weights
    that depend on t, but without level weights and sample weights. per_row: (B_0,), with mean `total`; samples that a
    level does not have count zero there, the others B_0 / B_i times. row_errors: (B_i,) for each level, detached;
    `per_level` are their means.
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
    own_factors: Sequence[torch.Tensor | None] | None = None,
) -> PyramidLoss:
    """Compute the sum over levels i of w_i * mean over its B_i samples b of r_b u_i(t_b) |v^ - v|^2 (eq. 5 of the
    paper).

    Args:
        predictions: predicted v, converted from what the model predicts if that is not v
            (`MatryoshkaScheduler.velocities_of`), element i (B_i, C, H_i, W_i), innermost first.
        velocities: true v, in the same shapes.
        alphas: signal power of every sample, element i (B_i,).
        level_weights: w_i, innermost first.
        weighting: determines u_i, which converts the error of v into another one; see `error_weights`.
        snr_gamma: modify u_i by Min-SNR-gamma; see `error_weights`.
        row_weights: r_b, (B_0,), e.g. the weight of prior preservation (DreamBooth) for samples of its class. They are
            not normalised by their sum, so a sample's gradient does not depend on the other samples.
        own_factors: u_i of the weighting "prediction", for every level; see `MatryoshkaScheduler.own_error_factors`.
    """
    num_rows = predictions[0].shape[0]
    if row_weights is not None and row_weights.shape != (num_rows,):
        raise ValueError(
            f"`row_weights` has shape {tuple(row_weights.shape)}; expected one for each sample, ({num_rows},)."
        )
    per_row = predictions[0].new_zeros(num_rows, dtype=torch.float32)
    row_errors = []
    own = own_factors or [None] * len(predictions)
    for level, (prediction, velocity, alpha, weight) in enumerate(
        zip(predictions, velocities, alphas, level_weights, strict=True)
    ):
        errors = (prediction.float() - velocity.float()).square().flatten(1).mean(1)
        timestep_weights = error_weights(alpha.to(errors), weighting, snr_gamma, own[level])
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
    """Keep the first `rows_per_level[i]` samples of level i (mixed-resolution batches)."""
    return [level[:rows] for level, rows in zip(pyramid, rows_per_level, strict=True)]


def error_weights(
    alphas: torch.Tensor,
    weighting: str = "epsilon",
    snr_gamma: float | None = None,
    own_factor: torch.Tensor | None = None,
) -> torch.Tensor | None:
    """Return the weights of the squared errors of v of one level.

    - "v": 1. "epsilon": alpha, which gives the squared error of the noise that v implies (ml-mdm's DDPM target),
      because eps^ - eps = sqrt(alpha) (v^ - v). "sample": 1 - alpha, the squared error of the clean image.
      "prediction": the squared error of what the network itself predicts, whose target for a "residual" has unit
      variance at every t (the weighting of EDM, Karras et al. 2022, arXiv 2206.00364).
    - `snr_gamma` (Min-SNR-gamma, Hang et al. 2023, arXiv 2303.09556) multiplies any of them by min(SNR, gamma) / SNR.
      With "epsilon" that is min(SNR, gamma) / (SNR + 1), the paper's weight of an error of v and what `--snr_gamma` of
      diffusers' scripts does to a v-prediction model: the squared error of the clean image times min(SNR, gamma). With
      "v", almost clean samples lose weight in the same proportion, and the noisiest keep 1, where the paper's weight
      vanishes.

    Each level has its own SNR, r_i^p below that of level 0, so the same gamma takes effect at a lower t for outer
    levels.

    Args:
        alphas: (B_i,), in [0, 1].
        weighting: one of `WEIGHTINGS`.
        snr_gamma: gamma > 0 (the paper uses 5), or None.
        own_factor: (B_i,), the weights for "prediction"; None for a level that predicts v.

    Returns:
        (B_i,) float32, or None if all are 1.
    """
    if weighting not in WEIGHTINGS:
        raise ValueError(f"`weighting` must be one of {', '.join(map(repr, WEIGHTINGS))}, got {weighting!r}.")
    if snr_gamma is not None and not snr_gamma > 0:
        raise ValueError(f"`snr_gamma` must be positive (the paper uses 5), or None; got {snr_gamma}.")
    alphas = alphas.float()
    weights = {"epsilon": alphas, "sample": 1 - alphas, "prediction": own_factor}.get(weighting)
    if snr_gamma is not None:
        snr = alphas / (1 - alphas)
        # The comparison avoids a quotient of infinite SNR and infinite gamma.
        clipped = torch.where(snr > snr_gamma, snr_gamma / snr, torch.ones_like(snr))
        weights = clipped if weights is None else weights * clipped
    return weights


def ramped_level_weights(stage: StageRecipe, num_old_levels: int, step: int) -> tuple[float, ...]:
    """Return the stage's level weights at one of its steps, innermost first.

    Weights of levels that are new in this stage rise linearly, as the fraction (step + 1) / `new_level_ramp_steps`, so
    that they are above 0 at the first step and reach their full value at step `new_level_ramp_steps` - 1.

    Args:
        stage: a stage with `level_weights` and `new_level_ramp_steps` (0: no ramp).
        num_old_levels: number of inner levels that were trained before this stage.
        step: optimizer step of the stage, starting at 0.
    """
    share = min(1.0, (step + 1) / stage.new_level_ramp_steps) if stage.new_level_ramp_steps else 1.0
    return tuple(weight if level < num_old_levels else weight * share for level, weight in enumerate(stage.weights))


def loss_table(
    row_errors: Sequence[torch.Tensor],
    timesteps: torch.Tensor,
    num_train_timesteps: int,
    leave_out_non_finite: bool = True,
) -> torch.Tensor:
    """Return sums and numbers of the samples' errors, by level and quartile of 0 ... T - 1.

    Tables are added with `+`, and over processes by `accelerator.reduce(table, "sum")`. This does not wait for an
    accelerator.

    Args:
        row_errors: (B_i,) for each level, innermost first, detached (`PyramidLoss.row_errors`).
        timesteps: (B_0,), in [0, T), of which level i has the first B_i.
        num_train_timesteps: T.
        leave_out_non_finite: do not count errors that are not finite: training skips such steps, and one of them would
            spoil the whole table.

    Returns:
        (2, levels, 4) float32: sums, and numbers of samples in them.
    """
    quartiles = timesteps.long() * NUM_QUARTILES // num_train_timesteps
    belongs = quartiles[:, None] == torch.arange(NUM_QUARTILES, device=timesteps.device)
    sums, counts = [], []
    for errors in row_errors:
        counted = belongs[: len(errors)]
        if leave_out_non_finite:
            counted = counted & errors.isfinite()[:, None]
        sums.append(torch.where(counted, errors.float()[:, None], 0.0).sum(0))
        counts.append(counted.float().sum(0))
    return torch.stack([torch.stack(sums), torch.stack(counts)])


def level_means(table: torch.Tensor) -> list[float]:
    """Return the mean error of each level over all t, innermost first; NaN for a level without samples."""
    # Summed in double precision on the CPU, since not all devices support it.
    sums, counts = table.cpu().double().sum(-1).tolist()
    return [_mean(total, count) for total, count in zip(sums, counts, strict=True)]


def table_values(table: torch.Tensor, name: str = "loss") -> dict[str, float]:
    """Return the means for logging: `{"loss/level_0": ..., "loss/level_0/quartile_1": ..., ...}`, without empty
    ones.
    """
    sums, counts = table.tolist()
    values = {}
    for level, mean in enumerate(level_means(table)):
        if not any(counts[level]):
            continue
        values[f"{name}/level_{level}"] = mean
        for quartile, (total, count) in enumerate(zip(sums[level], counts[level], strict=True), start=1):
            if count:
                values[f"{name}/level_{level}/quartile_{quartile}"] = _mean(total, count)
    return values


def _mean(total: float, count: float) -> float:
    return total / count if count else math.nan
