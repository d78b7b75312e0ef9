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
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch

from ...pyramid import Pyramid
from ..recipe.stage import StageRecipe

# The values of `loss_weighting`, with a description of the squared error that each amounts to.
WEIGHTINGS = {
    "epsilon": "of the noise",
    "v": "of v",
    "sample": "of the clean image",
    "prediction": "of what each level predicts",
    "sigmoid": "of the noise, weighted by a sigmoid of the log SNR",
}
NUM_QUARTILES = 4

# A number for all levels, or one for each, innermost first; None for none.
PerLevel = float | Sequence[float] | None


@dataclass(frozen=True)
class PyramidLoss:
    """The loss of a batch.

    total: scalar to minimise. per_level: scalar mean over each level's own samples, innermost first, with the weights
    that depend on t, but without level weights and sample weights. per_sample: (B_0,), with mean `total`; samples that
    a level does not have count zero there, the others B_0 / B_i times. sample_errors: (B_i,) for each level, detached;
    `per_level` are their means. extra: mean errors of extra losses by name, which `total` and `per_sample` contain
    with their weights.
    """

    total: torch.Tensor
    per_level: tuple[torch.Tensor, ...]
    per_sample: torch.Tensor
    sample_errors: tuple[torch.Tensor, ...]
    extra: Mapping[str, torch.Tensor] = field(default_factory=dict)


def pyramid_loss(
    predictions: Pyramid,
    velocities: Pyramid,
    alphas: Sequence[torch.Tensor],
    level_weights: Sequence[float],
    weighting: str = "epsilon",
    snr_gamma: PerLevel = None,
    sample_weights: torch.Tensor | None = None,
    own_factors: Sequence[torch.Tensor | None] | None = None,
    p2_gamma: PerLevel = None,
    p2_k: float = 1.0,
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
        snr_gamma: modify u_i by Min-SNR-gamma, with one gamma for all levels or one for each; see `error_weights`.
        sample_weights: r_b, (B_0,), e.g. the weight of prior preservation (DreamBooth) for samples of its class. They
            are not normalised by their sum, so a sample's gradient does not depend on the other samples.
        own_factors: u_i of weightings that depend on more than the signal power, for every level: of "prediction"
            (see `MatryoshkaScheduler.own_error_factors`) and "sigmoid" (see `sigmoid_factors`).
        p2_gamma: modify u_i by P2, with one exponent for all levels or one for each; see `error_weights`.
        p2_k: the constant of P2.
    """
    num_samples = predictions[0].shape[0]
    if sample_weights is not None and sample_weights.shape != (num_samples,):
        raise ValueError(
            f"`sample_weights` has shape {tuple(sample_weights.shape)}; expected one for each sample, "
            f"({num_samples},)."
        )
    per_sample = predictions[0].new_zeros(num_samples, dtype=torch.float32)
    sample_errors = []
    own = own_factors or [None] * len(predictions)
    for level, (prediction, velocity, alpha, weight) in enumerate(
        zip(predictions, velocities, alphas, level_weights, strict=True)
    ):
        errors = (prediction.float() - velocity.float()).square().flatten(1).mean(1)
        timestep_weights = error_weights(
            alpha.to(errors), weighting, _of_level(snr_gamma, level), own[level], _of_level(p2_gamma, level), p2_k
        )
        if timestep_weights is not None:
            errors = errors * timestep_weights
        sample_errors.append(errors)
        present = errors.shape[0]
        spread = torch.nn.functional.pad(errors, (0, num_samples - present)) * (num_samples / present)
        per_sample = per_sample + weight * spread
    if sample_weights is not None:
        per_sample = per_sample * sample_weights.to(per_sample)
    return PyramidLoss(
        total=per_sample.mean(),
        per_level=tuple(errors.mean() for errors in sample_errors),
        per_sample=per_sample,
        sample_errors=tuple(errors.detach() for errors in sample_errors),
    )


def thin_batches(pyramid: Pyramid, samples_per_level: Sequence[int]) -> Pyramid:
    """Keep the first `samples_per_level[i]` samples of level i (mixed-resolution batches)."""
    return [level[:number] for level, number in zip(pyramid, samples_per_level, strict=True)]


def error_weights(
    alphas: torch.Tensor,
    weighting: str = "epsilon",
    snr_gamma: float | None = None,
    own_factor: torch.Tensor | None = None,
    p2_gamma: float | None = None,
    p2_k: float = 1.0,
) -> torch.Tensor | None:
    """Return the weights of the squared errors of v of one level.

    - "v": 1. "epsilon": alpha, which gives the squared error of the noise that v implies (ml-mdm's DDPM target),
      because eps^ - eps = sqrt(alpha) (v^ - v). "sample": 1 - alpha, the squared error of the clean image.
      "prediction": the squared error of what the network itself predicts, whose target for a "residual" has unit
      variance at every t (the weighting of EDM, Karras et al. 2022, arXiv 2206.00364). "sigmoid": see
      `sigmoid_factors`.
    - `snr_gamma` (Min-SNR-gamma, Hang et al. 2023, arXiv 2303.09556) multiplies any of them by min(SNR, gamma) / SNR.
      With "epsilon" that is min(SNR, gamma) / (SNR + 1), the paper's weight of an error of v and what `--snr_gamma` of
      diffusers' scripts does to a v-prediction model: the squared error of the clean image times min(SNR, gamma). With
      "v", almost clean samples lose weight in the same proportion, and the noisiest keep 1, where the paper's weight
      vanishes.
    - `p2_gamma` (P2, Choi et al. 2022, arXiv 2204.00227) multiplies any of them by 1 / (k + SNR)^gamma; the paper does
      so with "epsilon".

    Each level has its own SNR, r_i^p below that of level 0, so the same gamma takes effect at a lower t for outer
    levels.

    Args:
        alphas: (B_i,), in [0, 1].
        weighting: one of `WEIGHTINGS`.
        snr_gamma: gamma > 0 (the paper uses 5), or None.
        own_factor: (B_i,), the weights for "prediction" and "sigmoid"; None for a level that predicts v.
        p2_gamma: gamma > 0 of P2 (the paper uses 0.5 and 1), or None.
        p2_k: k > 0 of P2 (the paper uses 1).

    Returns:
        (B_i,) float32, or None if all are 1.
    """
    if weighting not in WEIGHTINGS:
        raise ValueError(f"`weighting` must be one of {', '.join(map(repr, WEIGHTINGS))}, got {weighting!r}.")
    if snr_gamma is not None and not snr_gamma > 0:
        raise ValueError(f"`snr_gamma` must be positive (the paper uses 5), or None; got {snr_gamma}.")
    alphas = alphas.float()
    weights = {"epsilon": alphas, "v": None, "sample": 1 - alphas}.get(weighting, own_factor)
    if snr_gamma is not None:
        snr = alphas / (1 - alphas)
        # The comparison avoids a quotient of infinite SNR and infinite gamma.
        clipped = torch.where(snr > snr_gamma, snr_gamma / snr, torch.ones_like(snr))
        weights = clipped if weights is None else weights * clipped
    if p2_gamma is not None:
        prioritised = (p2_k + alphas / (1 - alphas)) ** -p2_gamma
        weights = prioritised if weights is None else weights * prioritised
    return weights


def sigmoid_factors(
    alphas_cumprod: torch.Tensor,
    timesteps: torch.Tensor,
    powers: Sequence[torch.Tensor],
    bias: PerLevel = 0.0,
) -> list[torch.Tensor | None]:
    """Return the weights of the errors of v under the sigmoid weighting, for every level, innermost first.

    The weight of the squared error of the noise at log SNR lambda is sigmoid(b - lambda), integrated over lambda
    (Kingma & Gao 2023, arXiv 2303.00848; for pixels with a bias, Hoogeboom et al. 2024, "Simpler Diffusion (SiD2)",
    arXiv 2410.19324). As t is sampled uniformly, that is -dlambda/du sigmoid(b - lambda) at u = t / T, and, for errors
    of v, that times alpha. So the loss hardly depends on the noise schedule. A lower bias b gives more weight to noisy
    images. Each level has its own lambda, which its shift does not make steeper.

    Args:
        alphas_cumprod: (T,), signal power of level 0 at every t.
        timesteps: (B_0,), of which level i has the first B_i.
        powers: signal power of every sample, element i (B_i,).
        bias: b, one for all levels or one for each.
    """
    log_snr = torch.logit(alphas_cumprod.cpu().double())
    finite = log_snr.isfinite()
    slopes = torch.zeros_like(log_snr)
    if finite.sum() > 1:
        slopes[finite] = -torch.gradient(log_snr[finite])[0] * len(log_snr)
    steepness = slopes.float().to(timesteps.device)[timesteps]
    factors: list[torch.Tensor | None] = []
    for level, power in enumerate(powers):
        power = power.float()
        weight = power * torch.sigmoid((_of_level(bias, level) or 0.0) - torch.logit(power))
        factors.append(weight * steepness[: len(power)])
    return factors


def _of_level(setting: PerLevel, level: int) -> float | None:
    return setting[level] if isinstance(setting, Sequence) else setting


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
    sample_errors: Sequence[torch.Tensor],
    timesteps: torch.Tensor,
    num_train_timesteps: int,
    leave_out_non_finite: bool = True,
) -> torch.Tensor:
    """Return sums and numbers of the samples' errors, by level and quartile of 0 ... T - 1.

    Tables are added with `+`, and over processes by `accelerator.reduce(table, "sum")`. This does not wait for an
    accelerator.

    Args:
        sample_errors: (B_i,) for each level, innermost first, detached (`PyramidLoss.sample_errors`).
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
    for errors in sample_errors:
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
