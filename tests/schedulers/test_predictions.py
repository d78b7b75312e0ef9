# SPDX-License-Identifier: Apache-2.0
"""Whatever a network predicts, the clean sample and its noise follow from it, and it from them."""

import pytest
import torch

from diffusers_mdm.schedulers import MatryoshkaScheduler
from diffusers_mdm.schedulers.predictions import (
    PREDICTION_TYPES,
    amplitudes,
    clean_from_prediction,
    noise_from_clean,
    velocity,
)

POWERS = (0.999, 0.5, 0.01)


@pytest.mark.parametrize("power", POWERS)
@pytest.mark.parametrize("prediction_type", PREDICTION_TYPES)
def test_a_perfect_prediction_of_any_kind_gives_the_clean_sample_and_its_noise(prediction_type, power):
    clean, noise = torch.rand(2, 3, 4, 4).double() * 2 - 1, torch.randn(2, 3, 4, 4).double()
    alpha, sigma = amplitudes(power)
    sample = alpha * clean + sigma * noise
    perfect = {
        "v_prediction": velocity(clean, noise, torch.full((2,), power).double()),
        "epsilon": noise,
        "sample": clean,
    }
    found = clean_from_prediction(perfect[prediction_type], sample, alpha, sigma, prediction_type)
    torch.testing.assert_close(found, clean, atol=1e-6, rtol=0)
    torch.testing.assert_close(noise_from_clean(found, sample, alpha, sigma), noise, atol=1e-4, rtol=0)


@pytest.mark.parametrize("power", [0.0, *POWERS, 1.0])
def test_amplitudes_are_of_unit_power_as_numbers_and_as_tensors(power):
    alpha, sigma = amplitudes(power)
    assert alpha**2 + sigma**2 == pytest.approx(1)
    assert [float(part) for part in amplitudes(torch.tensor(power))] == pytest.approx([alpha, sigma], abs=1e-6)


def test_an_unknown_prediction_is_refused():
    with pytest.raises(ValueError, match="'flow'; expected one of v_prediction, epsilon, sample"):
        clean_from_prediction(torch.zeros(1), torch.zeros(1), 0.6, 0.8, "flow")


def test_noise_cannot_be_predicted_from_pure_noise():
    scheduler = MatryoshkaScheduler(beta_schedule="linear", rescale_betas_zero_snr=True, prediction_type="epsilon")
    scheduler.set_timesteps(5)
    with pytest.raises(ValueError, match="pure noise"):
        scheduler.step(torch.zeros(1, 3, 8, 8), 999, torch.zeros(1, 3, 8, 8))
