# SPDX-License-Identifier: Apache-2.0
"""The scheduler gives the published implementation's numbers (tests/fixtures/golden/README.md says what was recorded).

Largest absolute differences observed, float32 on CPU:

    noise tables (all families, all shifts), timesteps   0
    noisy samples, v targets                             2.4e-7
    x0 and eps of a v prediction                         2.4e-7
    reverse steps: x0, and the sample after the step     4.8e-7

The recording's order is the published one: level 0 is the highest resolution, index t of its tables is this package's
t - 1. `innermost_first` and `- 1` below are the only places that know it.
"""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from diffusers_mdm.schedulers import MatryoshkaScheduler
from diffusers_mdm.schedulers.predictions import LevelPrediction, amplitudes, noise_from_clean

GOLDEN = Path(__file__).parents[1] / "fixtures" / "golden"
ATOL = 1e-6

META = json.loads((GOLDEN / "sampler.json").read_text())
SCHEDULES = META["schedules"]
THRESHOLDS = {
    "NONE": {"clip_sample": False},
    "CLIP": {"clip_sample": True},
    "DYNAMIC": {"thresholding": True, "dynamic_thresholding_ratio": 0.995, "sample_max_value": 100.0},
    "DYNAMIC_IF": {"thresholding": True, "dynamic_thresholding_ratio": 0.95, "sample_max_value": 1.5},
}


@pytest.fixture(scope="module")
def golden():
    return load_file(GOLDEN / "sampler_schedules.safetensors")


def innermost_first(levels):
    return list(levels)[::-1]


def level_tensors(golden, prefix, num_levels):
    return innermost_first(golden[f"{prefix}.{level}"] for level in range(num_levels))


def scheduler_of(schedule, **config):
    settings = SCHEDULES[schedule]
    if not settings["schedule_shifted"]:
        return MatryoshkaScheduler(level_scaling="rescale", **config)
    return MatryoshkaScheduler(shift_power=settings["schedule_shifted_power"], **config)


def assert_close(actual, expected, atol=ATOL):
    torch.testing.assert_close(actual, expected, atol=atol, rtol=0)


def test_published_schedule(golden):
    gammas = golden["schedule/gammas"]
    assert gammas[0] == 1
    assert torch.equal(MatryoshkaScheduler().alphas_cumprod, gammas[1:])


def test_linear_schedule(golden):
    scheduler = MatryoshkaScheduler(beta_schedule="linear")
    assert torch.equal(scheduler.alphas_cumprod, golden["schedule/ddpm_linear/gammas"][1:])


def test_cosine_schedule(golden):
    scheduler = MatryoshkaScheduler(beta_schedule="cosine_log_snr")
    assert_close(scheduler.alphas_cumprod, golden["schedule/cosine/gammas"][1:])


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_shifted_schedules(golden, schedule):
    scheduler = scheduler_of(schedule)
    for level, ratio in enumerate(SCHEDULES[schedule]["scales"]):
        power = scheduler.alpha_cumprod(torch.arange(1000), ratio)
        assert torch.equal(power, golden[f"schedule/{schedule}/gammas.{level}"][1:])


def test_vdm_weights_are_ratios_of_signal_to_noise(golden):
    power = MatryoshkaScheduler().alphas_cumprod
    snr = power / (1 - power)
    weights = snr[:-1] / snr[1:] - 1
    # The first two entries are repeated in the recording, which is indexed with our t.
    expected = golden["schedule/vdm_loss_weights"]
    torch.testing.assert_close(torch.cat([weights[:1], weights[:1], weights]), expected, atol=ATOL, rtol=1e-6)


@pytest.mark.parametrize("num_inference_steps", [1, 2, 3, 8, 10, 20, 25, 50, 100, 250, 500, 999, 1000])
def test_published_timesteps(golden, num_inference_steps):
    scheduler = MatryoshkaScheduler()
    scheduler.set_timesteps(num_inference_steps)
    recorded = golden[f"timesteps/{num_inference_steps}"]
    assert recorded[-1] == 0
    assert torch.equal(scheduler.timesteps, recorded[:-1] - 1)


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_noisy_samples_and_velocities(golden, schedule):
    num_levels = len(SCHEDULES[schedule]["scales"])
    scheduler = scheduler_of(schedule)
    images, noise = (level_tensors(golden, f"xt/{schedule}/{name}", num_levels) for name in ("images", "eps"))
    times = golden[f"xt/{schedule}/time"]

    powers = scheduler.level_alphas_cumprod(images, times)
    for power, expected in zip(powers, level_tensors(golden, f"xt/{schedule}/g", num_levels), strict=True):
        assert torch.equal(power, expected)
    for name, levels in (
        ("x_t", scheduler.add_noise(images, noise, times)),
        ("v_target", scheduler.get_velocity(images, noise, times)),
    ):
        for level, expected in zip(levels, level_tensors(golden, f"xt/{schedule}/{name}", num_levels), strict=True):
            assert_close(level, expected)


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_signal_power_one_step_later(golden, schedule):
    num_levels = len(SCHEDULES[schedule]["scales"])
    scheduler, times = scheduler_of(schedule), golden[f"xt/{schedule}/time"]
    for level, ratio in enumerate(innermost_first(SCHEDULES[schedule]["scales"])):
        recorded = level_tensors(golden, f"xt/{schedule}/g_last", num_levels)[level]
        expected = torch.where(times > 0, scheduler.alpha_cumprod((times - 1).clamp(min=0), ratio), torch.ones(()))
        assert torch.equal(recorded, expected)


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_conversions_of_a_model_output(golden, schedule):
    num_levels = len(SCHEDULES[schedule]["scales"])
    scheduler, times = scheduler_of(schedule), golden[f"xt/{schedule}/time"]
    names = ("model_v", "x_t", "x0_from_model_v", "eps_from_model_v")
    tensors = [level_tensors(golden, f"xt/{schedule}/{name}", num_levels) for name in names]
    powers = scheduler.level_alphas_cumprod(tensors[1], times)
    for output, sample, clean, noise, power in zip(*tensors, powers, strict=True):
        alpha, sigma = amplitudes(power.reshape(-1, *[1] * (sample.ndim - 1)))
        predicted = LevelPrediction("v_prediction", alpha, sigma).clean(output, sample)
        assert_close(predicted, clean)
        assert_close(noise_from_clean(predicted, sample, alpha, sigma), noise)


def step_cases(name):
    axes = META[name]
    shape = [len(axes[key]) for key in ("thresholds", "etas", "pairs")]
    return [tuple(int(index) for index in indices) for indices in np.ndindex(*shape)]


def run_step(golden, name, threshold, eta, pair):
    """The step `[threshold, eta, pair]` of the recording through the public interface, level by level as bare tensors
    (the recorded levels are all of one size), with ratios given by `base_sample_size`.
    """
    settings = META[name]
    now, later = settings["pairs"][pair]
    eta = settings["etas"][eta]
    results = []
    for level, ratio in enumerate(settings["scales"]):
        sample, output, noise = (golden[f"{name}/{key}"][level] for key in ("x_t", "model_v", "noise"))
        scheduler = scheduler_of(
            settings["schedule"],
            base_sample_size=sample.shape[-1] / ratio,
            **THRESHOLDS[settings["thresholds"][threshold]],
        )
        scheduler.set_timesteps(timesteps=[now - 1] + ([later - 1] if later else []))
        scale = settings["image_scale_per_level"][level]
        previous, clean = scheduler.step(output, now - 1, sample, eta=eta, variance_noise=noise, return_dict=False)
        results.append((previous if later else previous / scale, clean / scale))
    return results


@pytest.mark.parametrize("name", ["step", "step_unshifted"])
def test_reverse_steps(golden, name):
    worst = {"x0": 0.0, "x_last": 0.0}
    for threshold, eta, pair in step_cases(name):
        for level, (previous, clean) in enumerate(run_step(golden, name, threshold, eta, pair)):
            for key, actual in (("x0", clean), ("x_last", previous)):
                difference = (actual - golden[f"{name}/{key}"][threshold, eta, pair, level]).abs().max().item()
                worst[key] = max(worst[key], difference)
    assert max(worst.values()) <= ATOL, worst
