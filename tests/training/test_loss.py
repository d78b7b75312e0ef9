# SPDX-License-Identifier: Apache-2.0
import pytest
import torch

from diffusers_mdm import MatryoshkaScheduler, pyramid_noise
from diffusers_mdm.training.loss import pyramid_loss, thin_rows, vdm_weighted_total

SHAPES = [(6, 3, 4, 4), (4, 3, 8, 8), (2, 3, 16, 16)]


@pytest.fixture
def scheduler():
    return MatryoshkaScheduler(base_sample_size=4)


@pytest.fixture
def case(scheduler):
    clean, noise, predictions = (pyramid_noise(SHAPES) for _ in range(3))
    timesteps = torch.randint(0, 1000, (6,))
    return {
        "clean": clean,
        "noise": noise,
        "timesteps": timesteps,
        "predictions": predictions,
        "velocities": scheduler.get_velocity(clean, noise, timesteps),
        "alphas": scheduler.level_alphas_cumprod(clean, timesteps),
    }


def loss_of(case, weights=(1.0, 1.0, 1.0), weighting="epsilon"):
    return pyramid_loss(case["predictions"], case["velocities"], case["alphas"], weights, weighting)


def test_epsilon_weighting_is_the_error_of_the_noise(case, scheduler):
    noisy = scheduler.add_noise(case["clean"], case["noise"], case["timesteps"])
    for level, value in enumerate(loss_of(case).per_level):
        alpha = case["alphas"][level][:, None, None, None]
        implied = alpha.sqrt() * case["predictions"][level] + (1 - alpha).sqrt() * noisy[level]
        expected = (implied - case["noise"][level]).square().mean()
        torch.testing.assert_close(value, expected, rtol=1e-5, atol=1e-6)


def test_v_weighting_is_the_plain_error(case):
    for level, value in enumerate(loss_of(case, weighting="v").per_level):
        torch.testing.assert_close(
            value, torch.nn.functional.mse_loss(case["predictions"][level], case["velocities"][level])
        )


def test_levels_are_averaged_over_their_own_rows(case):
    loss = loss_of(case, weights=(1.0, 4.0, 16.0))
    expected = sum(weight * value for weight, value in zip((1.0, 4.0, 16.0), loss.per_level, strict=True))
    torch.testing.assert_close(loss.total, expected)
    torch.testing.assert_close(loss.per_row.mean(), loss.total)
    # The last two rows belong to the innermost level alone.
    inner = pyramid_loss(case["predictions"][:1], case["velocities"][:1], case["alphas"][:1], (1.0,))
    torch.testing.assert_close(loss.per_row[4:], inner.per_row[4:])


def test_perfect_prediction_costs_nothing(case):
    case["predictions"] = case["velocities"]
    assert loss_of(case).total == 0


def test_equal_weights_give_the_plain_mean():
    losses = torch.rand(5)
    torch.testing.assert_close(vdm_weighted_total(losses, torch.full((5,), 3.0)), losses.mean())


def test_thinning_keeps_the_first_rows(case):
    thinned = thin_rows(case["clean"], (6, 3, 1))
    assert [len(level) for level in thinned] == [6, 3, 1]
    assert torch.equal(thinned[1], case["clean"][1][:3])


def test_unknown_weighting_is_refused(case):
    with pytest.raises(ValueError, match="'epsilon' or 'v'"):
        loss_of(case, weighting="snr")
