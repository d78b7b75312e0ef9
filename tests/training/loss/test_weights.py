# SPDX-License-Identifier: Apache-2.0
import dataclasses
import math

import pytest
import torch
from diffusers.training_utils import compute_snr

from diffusers_mdm import MatryoshkaScheduler
from diffusers_mdm.training.loss.weights import error_weights, ramped_level_weights
from diffusers_mdm.training.recipe.stage import StageRecipe

STAGE = StageRecipe(
    name="outer",
    levels=3,
    batch_size=1,
    learning_rate=1.0,
    steps=100,
    level_weights=(1.0, 2.0, 4.0),
    new_level_ramp_steps=4,
)


def test_min_snr_weights_a_v_model_as_the_scripts_of_diffusers_do():
    scheduler, timesteps = MatryoshkaScheduler(), torch.arange(1000)
    snr = compute_snr(scheduler, timesteps)
    weights = error_weights(scheduler.alphas_cumprod, "epsilon", 5.0)
    torch.testing.assert_close(weights, snr.clamp(max=5.0) / (snr + 1), rtol=1e-4, atol=1e-7)


def test_min_snr_of_the_v_loss_clips_in_the_same_proportion():
    alphas = torch.linspace(0.01, 0.99, 50)
    ratio = error_weights(alphas, "epsilon", 2.0) / error_weights(alphas, "epsilon")
    torch.testing.assert_close(error_weights(alphas, "v", 2.0), ratio)
    noisy = alphas / (1 - alphas) <= 2.0
    assert (ratio[noisy] == 1).all()
    assert (ratio[~noisy] < 1).all()


@pytest.mark.parametrize("gamma", [5.0, math.inf])
@pytest.mark.parametrize("weighting", ["epsilon", "v"])
def test_no_noise_and_no_signal_have_finite_weights(weighting, gamma):
    weights = error_weights(torch.tensor([0.0, 1.0]), weighting, gamma)
    assert weights.isfinite().all()
    assert weights[0] == (0 if weighting == "epsilon" else 1)
    assert weights[1] == (0 if gamma == 5.0 else 1)


def test_an_outer_level_is_bent_at_its_own_snr():
    scheduler, timesteps = MatryoshkaScheduler(shift_power=2.0), torch.arange(1000)
    ratio = 4.0
    inner, outer = scheduler.alpha_cumprod(timesteps), scheduler.alpha_cumprod(timesteps, ratio)
    bent_inner, bent_outer = (error_weights(alphas, "v", 5.0) < 1 for alphas in (inner, outer))
    assert 0 < bent_outer.sum() < bent_inner.sum()
    # The level's SNR is 4^2 times lower, so it is bent where level 0 would be for 16 times the gamma.
    assert torch.equal(bent_outer, error_weights(inner, "v", 5.0 * 16) < 1)


def test_without_min_snr_v_has_no_weights():
    assert error_weights(torch.rand(3), "v") is None


@pytest.mark.parametrize("gamma", [0.0, -1.0, math.nan])
def test_gamma_has_to_be_positive(gamma):
    with pytest.raises(ValueError, match="must be positive"):
        error_weights(torch.rand(3), "v", gamma)


def test_new_levels_rise_to_their_weights():
    weights = [ramped_level_weights(STAGE, 1, step) for step in range(6)]
    assert weights[0] == (1.0, 0.5, 1.0)
    assert weights[1] == (1.0, 1.0, 2.0)
    assert weights[2] == (1.0, 1.5, 3.0)
    assert weights[3] == weights[4] == weights[5] == (1.0, 2.0, 4.0)


def test_old_levels_keep_their_weights():
    assert ramped_level_weights(STAGE, 3, 0) == STAGE.weights
    assert ramped_level_weights(STAGE, 2, 0) == (1.0, 2.0, 1.0)


def test_without_ramp_new_levels_start_with_their_weights():
    stage = dataclasses.replace(STAGE, new_level_ramp_steps=0, level_weights=None)
    assert ramped_level_weights(stage, 0, 0) == (1.0, 1.0, 1.0)
