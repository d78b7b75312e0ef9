# SPDX-License-Identifier: Apache-2.0
"""How much an error counts: by its signal-to-noise ratio, and by how long its level has been learning.

Glossary: g the signal power of a batch row at a level (after the level's shift), SNR = g / (1 - g), and the errors
that one error of v stands for: of the noise g |v^ - v|^2, of the picture (1 - g) |v^ - v|^2.
"""

import torch

from ..recipe.stage import StageRecipe

# The squared error that a weighting of the errors of v gives, in words: what `loss_weighting` may be.
WEIGHTINGS = {"epsilon": "of the noise", "v": "of v"}


def error_weights(
    alphas: torch.Tensor, weighting: str = "epsilon", snr_gamma: float | None = None
) -> torch.Tensor | None:
    """What the squared errors of v of one level are multiplied by.

    - "v": 1. "epsilon": g, which gives the squared error of the noise that v implies (ml-mdm's DDPM target).
    - `snr_gamma` (Min-SNR-gamma, Hang et al. 2023, arXiv 2303.09556) multiplies either by min(SNR, gamma) / SNR. With
      "epsilon" that is min(SNR, gamma) / (SNR + 1), the paper's weight of an error of v and what `--snr_gamma` of
      diffusers' scripts does to a v-prediction model: the squared error of the picture times min(SNR, gamma). With "v"
      nearly clean rows lose weight in the same proportion, and the noisiest keep 1 where the paper's weight vanishes.

    Each level has its own SNR, r_i^p below level 0's, so the same gamma bends an outer level at a lower t.

    Args:
        alphas: g, (B_i,), in [0, 1].
        weighting: one of `WEIGHTINGS`.
        snr_gamma: gamma > 0 (the paper uses 5), or None.

    Returns:
        (B_i,) float32, or None where all are 1.
    """
    if weighting not in WEIGHTINGS:
        raise ValueError(f"`weighting` must be one of {', '.join(map(repr, WEIGHTINGS))}, got {weighting!r}.")
    if snr_gamma is not None and not snr_gamma > 0:
        raise ValueError(f"`snr_gamma` must be positive (the paper uses 5), or None; got {snr_gamma}.")
    alphas = alphas.float()
    weights = alphas if weighting == "epsilon" else None
    if snr_gamma is not None:
        snr = alphas / (1 - alphas)
        # The comparison keeps infinite SNR and infinite gamma from meeting in a quotient.
        clipped = torch.where(snr > snr_gamma, snr_gamma / snr, torch.ones_like(snr))
        weights = clipped if weights is None else weights * clipped
    return weights


def ramped_level_weights(stage: StageRecipe, num_old_levels: int, step: int) -> tuple[float, ...]:
    """The stage's level weights at one of its steps, innermost first.

    Weights of levels that are new in this stage rise linearly to theirs: (step + 1) / `new_level_ramp_steps` of it, so
    that the first step is above 0 and step `new_level_ramp_steps` - 1 is the first with the whole weight.

    Args:
        stage: with `level_weights` and `new_level_ramp_steps` (0: no ramp).
        num_old_levels: inner levels that have been trained before this stage.
        step: optimizer step of the stage, 0-based.
    """
    share = min(1.0, (step + 1) / stage.new_level_ramp_steps) if stage.new_level_ramp_steps else 1.0
    return tuple(weight if level < num_old_levels else weight * share for level, weight in enumerate(stage.weights))
