# SPDX-License-Identifier: Apache-2.0
"""Which timesteps a sampler visits, and how it goes from one to the next."""

import numpy as np
import pytest
import torch
from diffusers import DDIMScheduler
from diffusers.pipelines.stable_diffusion.pipeline_stable_diffusion import retrieve_timesteps

from diffusers_mdm.schedulers import MatryoshkaScheduler
from diffusers_mdm.schedulers.reverse_steps import TIMESTEP_SPACINGS


@pytest.mark.parametrize("spacing", ["leading", "trailing", "linspace"])
@pytest.mark.parametrize("steps", [1, 3, 7, 50, 1000])
def test_spacings_of_diffusers_are_those_of_diffusers(spacing, steps):
    ours, theirs = (
        scheduler_class(timestep_spacing=spacing, beta_schedule="linear")
        for scheduler_class in (MatryoshkaScheduler, DDIMScheduler)
    )
    ours.set_timesteps(steps)
    theirs.set_timesteps(steps)
    assert torch.equal(ours.timesteps, theirs.timesteps)


def test_offset_moves_leading_timesteps():
    scheduler = MatryoshkaScheduler(timestep_spacing="leading", steps_offset=1)
    scheduler.set_timesteps(5)
    assert scheduler.timesteps.tolist() == [801, 601, 401, 201, 1]


@pytest.mark.parametrize("spacing", TIMESTEP_SPACINGS)
@pytest.mark.parametrize("total", [10, 100, 1000])
@pytest.mark.parametrize("steps", [1, 2, 9, 10])
def test_every_spacing_gives_one_timestep_a_network_call(spacing, total, steps):
    scheduler = MatryoshkaScheduler(num_train_timesteps=total, timestep_spacing=spacing)
    scheduler.set_timesteps(steps)
    assert len(scheduler.timesteps) == scheduler.num_inference_steps == steps
    assert scheduler.timesteps.dtype == torch.int64
    assert bool((scheduler.timesteps.diff() < 0).all())
    assert 0 <= scheduler.timesteps[-1] <= scheduler.timesteps[0] < total


@pytest.mark.parametrize("given", [[900, 300, 20], np.array([900, 300, 20]), torch.tensor([900, 300, 20])])
def test_custom_timesteps(given):
    scheduler = MatryoshkaScheduler()
    timesteps, count = retrieve_timesteps(scheduler, device="cpu", timesteps=given)
    assert timesteps.tolist() == [900, 300, 20]
    assert count == scheduler.num_inference_steps == 3


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({}, "either `num_inference_steps` or `timesteps`"),
        ({"num_inference_steps": 5, "timesteps": [3, 2]}, "either `num_inference_steps` or `timesteps`"),
        ({"num_inference_steps": 0}, "between 1 and 1000"),
        ({"num_inference_steps": 1001}, "between 1 and 1000"),
        ({"timesteps": []}, "at least one"),
        ({"timesteps": [10, 20]}, "be strictly decreasing"),
        ({"timesteps": [10, 10]}, "be strictly decreasing"),
        ({"timesteps": [1000, 10]}, "0 to 999"),
        ({"timesteps": [10, -1]}, "0 to 999"),
        ({"timesteps": [10.5, 3.0]}, "whole numbers"),
        ({"timesteps": [[10, 3]]}, "shape"),
    ],
)
def test_bad_timesteps_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        MatryoshkaScheduler().set_timesteps(**arguments)


def test_offset_out_of_range_is_refused():
    with pytest.raises(ValueError, match="steps_offset"):
        MatryoshkaScheduler(timestep_spacing="leading", steps_offset=1).set_timesteps(1000)


def test_previous_timestep_is_the_next_lower_one():
    scheduler = MatryoshkaScheduler()
    assert scheduler.previous_timestep(500) == 499
    scheduler.set_timesteps(timesteps=[900, 300, 20])
    assert [scheduler.previous_timestep(t) for t in (950, 900, torch.tensor(300), 299, 20, 5)] == [
        900,
        300,
        20,
        20,
        -1,
        -1,
    ]


def test_steps_are_counted():
    scheduler, sample = MatryoshkaScheduler(), torch.zeros(1, 3, 4, 4)
    scheduler.set_timesteps(4)
    assert scheduler.step_index is None
    assert scheduler.begin_index is None
    scheduler.set_begin_index(1)
    assert scheduler.begin_index == 1
    for index, t in enumerate(scheduler.timesteps[1:], start=1):
        sample = scheduler.step(sample, t, sample).prev_sample
        assert scheduler.step_index == index + 1
    scheduler.set_timesteps(4)
    assert scheduler.step_index is None
    assert scheduler.begin_index is None


def log_snrs(scheduler, ratio=1.0):
    return torch.logit(scheduler.alpha_cumprod(scheduler.timesteps, ratio).double())


@pytest.mark.parametrize("ratio", [1.0, 4.0, 16.0])
def test_log_snr_spacing_is_even_at_every_level(ratio):
    scheduler = MatryoshkaScheduler(timestep_spacing="log_snr")
    scheduler.set_timesteps(10)
    steps = log_snrs(scheduler, ratio).diff()
    assert (steps.max() / steps.min()).item() < 1.1
    assert scheduler.timesteps[0] == 990
    assert scheduler.timesteps[-1] == 2


def gaussian_error(spacing, algorithm, num_steps, std=0.5, sides=(16, 64, 256)):
    """Relative error of the spread of each level when N(0, std^2) data are drawn with their exact denoiser.

    The exact v of such data is a multiple of the sample, so one number stands for all of them.
    """
    scheduler = MatryoshkaScheduler(
        timestep_spacing=spacing, algorithm=algorithm, base_sample_size=sides[0], clip_sample=False
    )
    scheduler.set_timesteps(num_steps)
    sample = [torch.ones(1, 1, side, side, dtype=torch.float64) for side in sides]
    for t in scheduler.timesteps:
        powers = [power.double() for power in scheduler.level_alphas_cumprod(sample, t.reshape(1))]
        outputs = [
            (power * (1 - power)).sqrt() * (1 - std**2) / (power * std**2 + 1 - power) * level
            for power, level in zip(powers, sample, strict=True)
        ]
        sample = scheduler.step(outputs, t, sample).prev_sample
    return [abs(level.mean().item() / std - 1) for level in sample]


def test_log_snr_spacing_serves_all_levels_alike():
    even = gaussian_error("log_snr", "ddim", 20)
    assert max(even) < 1.1 * min(even)
    published = gaussian_error("matryoshka", "ddim", 20)
    assert max(published) > 3 * min(published)


def test_log_snr_spacing_and_the_two_step_solver_belong_together():
    errors = {count: gaussian_error("log_snr", "dpmsolver++", count) for count in (10, 20, 40)}
    for coarse, fine in ((10, 20), (20, 40)):
        assert sum(errors[fine]) < sum(errors[coarse]) / 2
    assert max(errors[20]) < max(gaussian_error("log_snr", "ddim", 20)) / 8
    assert max(errors[20]) < max(gaussian_error("matryoshka", "dpmsolver++", 20)) / 10
