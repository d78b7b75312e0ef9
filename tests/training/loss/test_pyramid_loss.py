# SPDX-License-Identifier: Apache-2.0
import math

import pytest
import torch

from diffusers_mdm import MatryoshkaScheduler, pyramid_noise
from diffusers_mdm.training.loss.pyramid_loss import pyramid_loss, thin_rows

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


def loss_of(case, weights=(1.0, 1.0, 1.0), weighting="epsilon", **options):
    return pyramid_loss(case["predictions"], case["velocities"], case["alphas"], weights, weighting, **options)


def test_epsilon_weighting_is_the_error_of_the_noise(case, scheduler):
    noisy = scheduler.add_noise(case["clean"], case["noise"], case["timesteps"])
    for level, value in enumerate(loss_of(case).per_level):
        alpha = case["alphas"][level][:, None, None, None]
        implied = alpha.sqrt() * case["predictions"][level] + (1 - alpha).sqrt() * noisy[level]
        expected = (implied - case["noise"][level]).square().mean()
        torch.testing.assert_close(value, expected, rtol=1e-5, atol=1e-6)


def test_min_snr_is_the_error_of_the_picture_times_the_clipped_snr(case, scheduler):
    noisy = scheduler.add_noise(case["clean"], case["noise"], case["timesteps"])
    for level, errors in enumerate(loss_of(case, snr_gamma=5.0).row_errors):
        alpha = case["alphas"][level]
        column = alpha[:, None, None, None]
        implied = column.sqrt() * noisy[level] - (1 - column).sqrt() * case["predictions"][level]
        expected = (implied - case["clean"][level]).square().flatten(1).mean(1) * (alpha / (1 - alpha)).clamp(max=5.0)
        torch.testing.assert_close(errors, expected, rtol=1e-4, atol=1e-6)


def test_v_weighting_is_the_plain_error(case):
    for level, value in enumerate(loss_of(case, weighting="v").per_level):
        torch.testing.assert_close(
            value, torch.nn.functional.mse_loss(case["predictions"][level], case["velocities"][level])
        )


@pytest.mark.parametrize("weighting", ["epsilon", "v"])
def test_min_snr_without_limit_changes_nothing(case, weighting):
    unlimited, plain = loss_of(case, weighting=weighting, snr_gamma=math.inf), loss_of(case, weighting=weighting)
    assert torch.equal(unlimited.per_row, plain.per_row)


def test_levels_are_averaged_over_their_own_rows(case):
    loss = loss_of(case, weights=(1.0, 4.0, 16.0))
    expected = sum(weight * value for weight, value in zip((1.0, 4.0, 16.0), loss.per_level, strict=True))
    torch.testing.assert_close(loss.total, expected)
    torch.testing.assert_close(loss.per_row.mean(), loss.total)
    # The last two rows belong to the innermost level alone.
    inner = pyramid_loss(case["predictions"][:1], case["velocities"][:1], case["alphas"][:1], (1.0,))
    torch.testing.assert_close(loss.per_row[4:], inner.per_row[4:])


def test_row_weights_multiply_the_rows_and_leave_the_means_of_levels_alone(case):
    row_weights = torch.tensor([1.0, 0.0, 2.0, 0.5, 1.0, 3.0])
    weighted, plain = loss_of(case, row_weights=row_weights), loss_of(case)
    torch.testing.assert_close(weighted.per_row, plain.per_row * row_weights)
    torch.testing.assert_close(weighted.total, (plain.per_row * row_weights).mean())
    assert weighted.per_level == plain.per_level


def test_prior_preservation_is_the_sum_of_two_losses(case):
    """Half the rows show the subject, half its class: the mean over the one and a weight times that over the other."""
    predictions, velocities, alphas = case["predictions"][:1], case["velocities"][:1], case["alphas"][:1]

    def halves(rows):
        return pyramid_loss([predictions[0][rows]], [velocities[0][rows]], [alphas[0][rows]], (1.0,)).total

    row_weights = torch.tensor([1.0, 0.7] * 3) * 2
    both = pyramid_loss(predictions, velocities, alphas, (1.0,), row_weights=row_weights).total
    torch.testing.assert_close(both, halves(slice(0, None, 2)) + 0.7 * halves(slice(1, None, 2)))


def test_row_weights_scale_gradients(case):
    for prediction in case["predictions"]:
        prediction.requires_grad_()
    loss_of(case, row_weights=torch.tensor([0.0, 1.0, 1.0, 1.0, 1.0, 1.0])).total.backward()
    for prediction in case["predictions"]:
        assert prediction.grad[0].abs().sum() == 0
        assert prediction.grad[1].abs().sum() > 0


def test_errors_of_rows_are_kept_without_their_graph(case):
    case["predictions"][0].requires_grad_()
    loss = loss_of(case, weights=(1.0, 4.0, 16.0), snr_gamma=2.0)
    assert [len(errors) for errors in loss.row_errors] == [6, 4, 2]
    assert not any(errors.requires_grad for errors in loss.row_errors)
    for errors, mean in zip(loss.row_errors, loss.per_level, strict=True):
        assert torch.equal(errors.mean(), mean.detach())


def test_perfect_prediction_costs_nothing(case):
    case["predictions"] = case["velocities"]
    assert loss_of(case).total == 0


def test_thinning_keeps_the_first_rows(case):
    thinned = thin_rows(case["clean"], (6, 3, 1))
    assert [len(level) for level in thinned] == [6, 3, 1]
    assert torch.equal(thinned[1], case["clean"][1][:3])


def test_unknown_weighting_is_refused(case):
    with pytest.raises(ValueError, match="'epsilon', 'v'"):
        loss_of(case, weighting="snr")


def test_row_weights_of_another_batch_are_refused(case):
    with pytest.raises(ValueError, match=r"\(4,\); expected one for each batch row, \(6,\)"):
        loss_of(case, row_weights=torch.ones(4))
