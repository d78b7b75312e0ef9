# SPDX-License-Identifier: Apache-2.0
"""Samplers with the exact denoiser of a Gaussian pyramid: what they draw, how fast they converge, how few calls do.

Errors are relative, of the standard deviations along the principal components of every level, root mean square.
"""

import functools

import pytest
import torch

from diffusers_mdm.schedulers import MatryoshkaScheduler
from tests.schedulers.gaussian_pyramid import GaussianPyramid

GAUSSIAN = GaussianPyramid((2, 4))


@functools.cache
def error(spacing, algorithm, num_steps, eta=0.0):
    scheduler = MatryoshkaScheduler(
        timestep_spacing=spacing, algorithm=algorithm, clip_sample=False, base_sample_size=GAUSSIAN.sides[0]
    )
    scheduler.set_timesteps(num_steps)
    return GAUSSIAN.error(scheduler, eta)


def test_exact_predictions_of_all_levels_agree_and_see_all_levels():
    noisy = [torch.randn(3, 1, side, side, dtype=torch.float64) for side in GAUSSIAN.sides]
    inner, outer = GAUSSIAN.posterior_mean(noisy, [0.5, 0.3])
    torch.testing.assert_close(torch.nn.functional.avg_pool2d(outer, 2), inner)
    alone = GAUSSIAN.posterior_mean(noisy[:1], [0.5])[0]
    assert (alone - inner).abs().max() > 0.05


def test_the_exact_denoiser_is_the_mean_of_what_it_sees():
    """Regression of clean levels on noisy ones over many draws finds the same matrix."""
    rows, powers = 50_000, [0.6, 0.4]
    x = torch.linalg.cholesky(GAUSSIAN.covariance) @ torch.randn(16, rows, dtype=torch.float64)
    clean = [(down @ x).T for down in GAUSSIAN.downs]
    noisy = torch.cat(
        [p**0.5 * c + (1 - p) ** 0.5 * torch.randn_like(c) for p, c in zip(powers, clean, strict=True)], dim=1
    )
    found = torch.linalg.lstsq(noisy, clean[1]).solution
    basis = torch.eye(20, dtype=torch.float64).split([4, 16], dim=1)
    levels = [part.reshape(20, 1, side, side) for part, side in zip(basis, GAUSSIAN.sides, strict=True)]
    exact = GAUSSIAN.posterior_mean(levels, powers)[1].flatten(1)
    torch.testing.assert_close(found, exact, atol=0.02, rtol=0)


def test_ten_calls_of_the_two_step_solver_do_where_its_steps_are_even_in_log_snr():
    pair = error("log_snr", "dpmsolver++", 10)
    assert pair < 0.03
    assert pair < error("log_snr", "ddim", 10) / 7
    assert pair < error("matryoshka", "ddim", 10) / 7
    assert pair < error("matryoshka", "ddim", 10, eta=1.0) / 9
    assert all(pair < error(spacing, "dpmsolver++", 10) / 5 for spacing in ("matryoshka", "linspace", "trailing"))
    assert pair < error("matryoshka", "ddim", 40) / 2


@pytest.mark.parametrize("spacing", ["matryoshka", "linspace", "trailing", "log_snr"])
@pytest.mark.parametrize("eta", [0.0, 1.0])
def test_one_step_solvers_converge_at_first_order(spacing, eta):
    coarse, middle, fine = (error(spacing, "ddim", count, eta) for count in (10, 20, 40))
    assert 1.3 < coarse / middle < 2.3
    assert 1.5 < middle / fine < 2.3


def test_the_two_step_solver_converges_faster_than_that():
    coarse, fine = (error("log_snr", "dpmsolver++", count) for count in (10, 40))
    assert coarse / fine > 8
    assert error("matryoshka", "dpmsolver++", 10) / error("matryoshka", "dpmsolver++", 40) > 8


@pytest.mark.parametrize(
    ("algorithm", "spacing"), [("ddim", "matryoshka"), ("ddim", "trailing"), ("dpmsolver++", "log_snr")]
)
def test_the_schedule_of_rectified_flow_needs_no_sampler_of_its_own(algorithm, spacing):
    """Every level is shifted, and the first step starts from pure noise."""
    scheduler = MatryoshkaScheduler(
        beta_schedule="rectified_flow",
        base_sample_size=GAUSSIAN.sides[0],
        clip_sample=False,
        algorithm=algorithm,
        timestep_spacing=spacing,
    )
    errors = []
    for count in (10, 40):
        scheduler.set_timesteps(count)
        errors.append(GAUSSIAN.error(scheduler))
    assert errors[1] < errors[0] / 2.5
    assert errors[1] < 0.1
