# SPDX-License-Identifier: Apache-2.0
"""Noise families and the shift by level."""

import math

import pytest
import torch
from diffusers import DDIMScheduler
from diffusers.training_utils import compute_snr

from diffusers_mdm.schedulers import MatryoshkaScheduler
from diffusers_mdm.schedulers.noise_schedules import BETA_SCHEDULES
from diffusers_mdm.schedulers.predictions import shift_signal_power

MIDDLE = torch.arange(50, 900, 50)


def log_snr(power):
    return torch.logit(power.double())


@pytest.mark.parametrize("beta_schedule", BETA_SCHEDULES)
def test_every_family_falls_from_almost_clean_to_almost_noise(beta_schedule):
    scheduler = MatryoshkaScheduler(beta_schedule=beta_schedule)
    power = scheduler.alphas_cumprod
    assert power.shape == (1000,)
    assert power.dtype == torch.float32
    assert bool((power[1:] < power[:-1]).all())
    assert power[0] > 0.99
    assert power[-1] < 0.01
    torch.testing.assert_close(torch.cumprod(1 - scheduler.betas, 0), power, atol=1e-4, rtol=0)


@pytest.mark.parametrize("beta_schedule", ["linear", "scaled_linear", "squaredcos_cap_v2"])
def test_families_of_diffusers_are_those_of_diffusers(beta_schedule):
    theirs = DDIMScheduler(beta_schedule=beta_schedule)
    ours = MatryoshkaScheduler(beta_schedule=beta_schedule)
    torch.testing.assert_close(ours.betas, theirs.betas, atol=1e-7, rtol=1e-4)
    torch.testing.assert_close(ours.alphas_cumprod, theirs.alphas_cumprod, atol=1e-5, rtol=0)


def test_cosine_reaches_its_log_snrs():
    power = MatryoshkaScheduler(beta_schedule="cosine_log_snr", log_snr_max=8.0, log_snr_min=-7.0).alphas_cumprod
    torch.testing.assert_close(log_snr(power[[0, -1]]), torch.tensor([8.0, -7.0]).double(), atol=1e-3, rtol=0)


def test_rectified_flow_has_the_log_snr_of_the_straight_path():
    power = MatryoshkaScheduler(beta_schedule="rectified_flow", num_train_timesteps=100).alphas_cumprod
    noise = torch.arange(1, 100).double() / 100  # share of noise in the straight path
    torch.testing.assert_close(log_snr(power[:-1]), 2 * torch.log((1 - noise) / noise), atol=1e-3, rtol=0)
    assert power[-1] == 0


def test_zero_terminal_snr_keeps_the_start():
    plain = MatryoshkaScheduler(beta_schedule="linear")
    rescaled = MatryoshkaScheduler(beta_schedule="linear", rescale_betas_zero_snr=True)
    assert rescaled.alphas_cumprod[-1] == 0
    torch.testing.assert_close(rescaled.alphas_cumprod[0], plain.alphas_cumprod[0])


@pytest.mark.parametrize("ratio", [2.0, 4.0, 16.0])
@pytest.mark.parametrize("shift_power", [0.0, 1.0, 2.0])
def test_shift_is_minus_p_log_ratio(ratio, shift_power):
    scheduler = MatryoshkaScheduler(shift_power=shift_power)
    shift = log_snr(scheduler.alpha_cumprod(MIDDLE, ratio)) - log_snr(scheduler.alpha_cumprod(MIDDLE))
    torch.testing.assert_close(shift, torch.full_like(shift, -shift_power * math.log(ratio)), atol=1e-4, rtol=0)


def test_shifts_add_up():
    power = MatryoshkaScheduler().alphas_cumprod
    twice = shift_signal_power(shift_signal_power(power, 4.0, 1.0), 4.0, 1.0)
    torch.testing.assert_close(twice, shift_signal_power(power, 16.0, 1.0))


def test_level_0_does_not_depend_on_the_shift():
    pyramid = [torch.zeros(2, 3, 4, 4), torch.zeros(2, 3, 16, 16)]
    times = torch.tensor([10, 700])
    inner = {
        p: MatryoshkaScheduler(shift_power=p).level_alphas_cumprod(pyramid, times)[0].tolist() for p in (0.0, 1.0, 2.0)
    }
    assert inner[0.0] == inner[1.0] == inner[2.0]
    assert torch.equal(MatryoshkaScheduler().alphas_cumprod[times], torch.tensor(inner[0.0]))


def test_pure_noise_and_clean_images_are_not_shifted():
    ends = torch.tensor([0.0, 1.0])
    assert torch.equal(shift_signal_power(ends, 4.0, 1.0), ends)


def test_trained_betas_decide_the_number_of_timesteps():
    scheduler = MatryoshkaScheduler(trained_betas=[0.1, 0.3])
    assert len(scheduler) == scheduler.config.num_train_timesteps == 2
    torch.testing.assert_close(scheduler.alphas_cumprod, torch.tensor([0.9, 0.63]))


def test_hosts_snr_is_that_of_level_0():
    scheduler = MatryoshkaScheduler()
    power = scheduler.alphas_cumprod[MIDDLE]
    torch.testing.assert_close(compute_snr(scheduler, MIDDLE), power / (1 - power), rtol=1e-4, atol=0)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"beta_schedule": "sigmoid"}, "squaredcos_cap_v2"),
        ({"prediction_type": "flow"}, "v_prediction, epsilon, sample"),
        ({"timestep_spacing": "even"}, "matryoshka, leading, trailing, linspace"),
        ({"algorithm": "euler"}, "ddim, dpmsolver"),
        ({"level_scaling": "grow"}, "shift, rescale"),
        ({"solver_order": 3}, "1, 2"),
        ({"shift_power": -1.0}, "shift_power"),
        ({"base_sample_size": 0}, "base_sample_size"),
        ({"num_train_timesteps": 0}, "num_train_timesteps"),
        ({"dynamic_thresholding_ratio": 1.5}, "dynamic_thresholding_ratio"),
        ({"trained_betas": []}, "trained_betas"),
        ({"trained_betas": [0.1, -0.1]}, "from 0 to 1"),
        ({"beta_schedule": "cosine_log_snr", "log_snr_max": -9.0}, "log_snr_min"),
    ],
)
def test_unknown_settings_are_refused(config, message):
    with pytest.raises(ValueError, match=message):
        MatryoshkaScheduler(**config)


def test_timesteps_beyond_the_last_usable_beta_are_refused():
    scheduler = MatryoshkaScheduler(beta_schedule="linear", beta_start=0.1, beta_end=2.0)
    scheduler.alpha_cumprod(torch.tensor(10))
    with pytest.raises(ValueError, match="exceed 1"):
        scheduler.alpha_cumprod(torch.tensor(999))
