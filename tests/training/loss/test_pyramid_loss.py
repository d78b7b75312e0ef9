# SPDX-License-Identifier: Apache-2.0
"""The loss by its definition, what errors are weighted with, and their tables."""

import dataclasses
import math

import pytest
import torch
from diffusers.training_utils import compute_snr
from torch.utils._python_dispatch import TorchDispatchMode

from diffusers_mdm import MatryoshkaScheduler, build_pyramid, pyramid_noise
from diffusers_mdm.training.loss.pyramid_loss import (
    error_weights,
    level_means,
    loss_table,
    pyramid_loss,
    ramped_level_weights,
    sigmoid_factors,
    table_values,
    thin_batches,
)
from diffusers_mdm.training.recipe.stage import StageRecipe

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


def test_min_snr_is_the_error_of_the_image_times_the_clipped_snr(case, scheduler):
    noisy = scheduler.add_noise(case["clean"], case["noise"], case["timesteps"])
    for level, errors in enumerate(loss_of(case, snr_gamma=5.0).sample_errors):
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
    assert torch.equal(unlimited.per_sample, plain.per_sample)


def test_levels_are_averaged_over_their_own_rows(case):
    loss = loss_of(case, weights=(1.0, 4.0, 16.0))
    expected = sum(weight * value for weight, value in zip((1.0, 4.0, 16.0), loss.per_level, strict=True))
    torch.testing.assert_close(loss.total, expected)
    torch.testing.assert_close(loss.per_sample.mean(), loss.total)
    # The last two rows belong to the innermost level alone.
    inner = pyramid_loss(case["predictions"][:1], case["velocities"][:1], case["alphas"][:1], (1.0,))
    torch.testing.assert_close(loss.per_sample[4:], inner.per_sample[4:])


def test_row_weights_multiply_the_rows_and_leave_the_means_of_levels_alone(case):
    sample_weights = torch.tensor([1.0, 0.0, 2.0, 0.5, 1.0, 3.0])
    weighted, plain = loss_of(case, sample_weights=sample_weights), loss_of(case)
    torch.testing.assert_close(weighted.per_sample, plain.per_sample * sample_weights)
    torch.testing.assert_close(weighted.total, (plain.per_sample * sample_weights).mean())
    assert weighted.per_level == plain.per_level


def test_prior_preservation_is_the_sum_of_two_losses(case):
    """Half the rows show the subject, half its class: the mean over the one and a weight times that over the other."""
    predictions, velocities, alphas = case["predictions"][:1], case["velocities"][:1], case["alphas"][:1]

    def halves(rows):
        return pyramid_loss([predictions[0][rows]], [velocities[0][rows]], [alphas[0][rows]], (1.0,)).total

    sample_weights = torch.tensor([1.0, 0.7] * 3) * 2
    both = pyramid_loss(predictions, velocities, alphas, (1.0,), sample_weights=sample_weights).total
    torch.testing.assert_close(both, halves(slice(0, None, 2)) + 0.7 * halves(slice(1, None, 2)))


def test_row_weights_scale_gradients(case):
    for prediction in case["predictions"]:
        prediction.requires_grad_()
    loss_of(case, sample_weights=torch.tensor([0.0, 1.0, 1.0, 1.0, 1.0, 1.0])).total.backward()
    for prediction in case["predictions"]:
        assert prediction.grad[0].abs().sum() == 0
        assert prediction.grad[1].abs().sum() > 0


def test_errors_of_rows_are_kept_without_their_graph(case):
    case["predictions"][0].requires_grad_()
    loss = loss_of(case, weights=(1.0, 4.0, 16.0), snr_gamma=2.0)
    assert [len(errors) for errors in loss.sample_errors] == [6, 4, 2]
    assert not any(errors.requires_grad for errors in loss.sample_errors)
    for errors, mean in zip(loss.sample_errors, loss.per_level, strict=True):
        assert torch.equal(errors.mean(), mean.detach())


def test_perfect_prediction_costs_nothing(case):
    case["predictions"] = case["velocities"]
    assert loss_of(case).total == 0


def test_thinning_keeps_the_first_rows(case):
    thinned = thin_batches(case["clean"], (6, 3, 1))
    assert [len(level) for level in thinned] == [6, 3, 1]
    assert torch.equal(thinned[1], case["clean"][1][:3])


def test_unknown_weighting_is_refused(case):
    with pytest.raises(ValueError, match="'epsilon', 'v'"):
        loss_of(case, weighting="snr")


def test_row_weights_of_another_batch_are_refused(case):
    with pytest.raises(ValueError, match=r"\(4,\); expected one for each sample, \(6,\)"):
        loss_of(case, sample_weights=torch.ones(4))


# Weights

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


@pytest.mark.parametrize("kind", ["epsilon", "sample", "residual", "sample_residual"])
def test_errors_of_what_is_predicted_follow_from_those_of_v(kind):
    scheduler = MatryoshkaScheduler(prediction_type=["v_prediction", kind], sigma_data=0.3, base_sample_size=4)
    clean = build_pyramid(torch.rand(2, 3, 8, 8) * 2 - 1, [4, 8])
    noise, timesteps = pyramid_noise([level.shape for level in clean]), torch.tensor([200, 800])
    sample, powers = scheduler.add_noise(clean, noise, timesteps), scheduler.level_alphas_cumprod(clean, timesteps)
    outputs = [torch.randn_like(level) for level in clean]
    one = scheduler.velocities_of(outputs, clean, sample, timesteps)
    for level, factor in enumerate(scheduler.own_error_factors(powers)):
        moved = [output + 0.5 if index == level else output for index, output in enumerate(outputs)]
        other = scheduler.velocities_of(moved, clean, sample, timesteps)
        errors = (other[level] - one[level]).square().flatten(1).mean(1)
        weights = error_weights(powers[level], "prediction", own_factor=factor)
        found = errors if weights is None else errors * weights
        torch.testing.assert_close(found, torch.full((2,), 0.25), rtol=1e-3, atol=0)


def test_an_error_of_the_image_is_weighted_by_one():
    alphas = torch.linspace(0.01, 0.99, 50)
    errors_of_v = torch.rand(50)
    torch.testing.assert_close(errors_of_v * error_weights(alphas, "sample"), errors_of_v * (1 - alphas))
    # Min-SNR of the paper, min(SNR, gamma) times the error of the image, is that of the noise that is bent.
    snr = alphas / (1 - alphas)
    bent = error_weights(alphas, "epsilon", 5.0)
    torch.testing.assert_close(bent, error_weights(alphas, "sample") * snr.clamp(max=5.0))


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


def test_sigmoid_weights_follow_their_definition():
    """At log SNR l, sigmoid(b - l) times the squared error of the noise, integrated over l."""
    scheduler, timesteps, bias = MatryoshkaScheduler(beta_schedule="cosine_log_snr"), torch.arange(100, 900), -2.0
    log_snr = torch.logit(scheduler.alphas_cumprod.double())
    power = scheduler.alphas_cumprod[timesteps]
    (factors,) = sigmoid_factors(scheduler.alphas_cumprod, timesteps, [power], bias)
    steepness = (log_snr[timesteps - 1] - log_snr[timesteps + 1]) / 2 * 1000
    expected = steepness * torch.sigmoid(bias - log_snr[timesteps]) * power.double()
    torch.testing.assert_close(factors, expected.float(), rtol=1e-3, atol=1e-6)


def test_the_sigmoid_loss_hardly_depends_on_the_schedule():
    """It is an integral over log SNR, here of errors of the noise that are all 1."""
    integrals = []
    for schedule in ("squaredcos_cap_v2", "rectified_flow", "linear"):
        powers = MatryoshkaScheduler(beta_schedule=schedule).alphas_cumprod
        (factors,) = sigmoid_factors(powers, torch.arange(1000), [powers], -1.0)
        error_of_v = 1 / powers.clamp(min=1e-6)
        within = (torch.logit(powers) > -5) & (torch.logit(powers) < 5)
        integrals.append((factors * error_of_v)[within].sum() / 1000)
    torch.testing.assert_close(integrals[0], integrals[1], rtol=0.02, atol=0)
    torch.testing.assert_close(integrals[0], integrals[2], rtol=0.02, atol=0)


@pytest.mark.parametrize("schedule", ["squaredcos_cap_v2", "rectified_flow"])
def test_sigmoid_weights_are_finite_even_for_pure_noise(schedule):
    scheduler = MatryoshkaScheduler(beta_schedule=schedule, base_sample_size=4)
    timesteps = torch.tensor([0, 400, 999])
    powers = [scheduler.alpha_cumprod(timesteps, ratio) for ratio in (1.0, 4.0)]
    inner, outer = sigmoid_factors(scheduler.alphas_cumprod, timesteps, powers, [-1.0, -3.0])
    assert inner.isfinite().all()
    assert outer.isfinite().all()
    assert (inner >= 0).all()
    # Each level has its own bias: sigmoid(-1 - l) alpha at level 0, sigmoid(-3 - l_1) alpha_1 at level 1.
    ratio = (outer[1] / inner[1]).double()
    own = [
        torch.sigmoid(bias - torch.logit(power[1].double())) * power[1].double()
        for bias, power in zip([-1.0, -3.0], powers, strict=True)
    ]
    torch.testing.assert_close(ratio, own[1] / own[0], rtol=1e-4, atol=0)


def test_p2_divides_by_a_power_of_the_snr():
    alphas = torch.linspace(0, 1, 50)
    snr = alphas / (1 - alphas)
    torch.testing.assert_close(error_weights(alphas, "epsilon", p2_gamma=0.5), alphas / (1 + snr).sqrt())
    torch.testing.assert_close(error_weights(alphas, "v", p2_gamma=1.0, p2_k=2.0), 1 / (2 + snr))


@pytest.mark.parametrize("name", ["snr_gamma", "p2_gamma"])
def test_a_weighting_may_differ_from_level_to_level(case, name):
    together = loss_of(case, **{name: [1.0, 2.0, 4.0]}).sample_errors
    for level, gamma in enumerate([1.0, 2.0, 4.0]):
        assert torch.equal(together[level], loss_of(case, **{name: gamma}).sample_errors[level])


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


# Tables


def test_rows_are_counted_in_the_quartile_of_their_t():
    timesteps = torch.tensor([0, 249, 250, 499, 500, 749, 750, 999])
    table = loss_table([torch.arange(8.0)], timesteps, 1000)
    assert table[0].tolist() == [[1.0, 5.0, 9.0, 13.0]]
    assert table[1].tolist() == [[2.0, 2.0, 2.0, 2.0]]


def test_outer_levels_count_their_first_rows():
    table = loss_table([torch.ones(4), torch.tensor([3.0, 5.0])], torch.tensor([0, 999, 999, 999]), 1000)
    assert table_values(table) == {
        "loss/level_0": 1.0,
        "loss/level_0/quartile_1": 1.0,
        "loss/level_0/quartile_4": 1.0,
        "loss/level_1": 4.0,
        "loss/level_1/quartile_1": 3.0,
        "loss/level_1/quartile_4": 5.0,
    }


def test_tables_of_parts_add_up_to_that_of_the_whole():
    timesteps = torch.randint(0, 1000, (64,))
    errors = [torch.rand(64), torch.rand(64)]
    whole = loss_table(errors, timesteps, 1000)
    parts = sum(loss_table([level[p::4] for level in errors], timesteps[p::4], 1000) for p in range(4))
    torch.testing.assert_close(parts, whole)
    for level, mean in enumerate(level_means(whole)):
        assert mean == pytest.approx(errors[level].mean().item(), rel=1e-6)


@pytest.mark.parametrize("num_train_timesteps", [4, 10, 999, 1000])
def test_quartiles_are_even(num_train_timesteps):
    everything = torch.arange(num_train_timesteps)
    counts = loss_table([torch.ones(num_train_timesteps)], everything, num_train_timesteps)[1, 0]
    assert counts.sum() == num_train_timesteps
    assert counts.max() - counts.min() <= 1


def test_errors_that_are_not_finite_are_left_out_on_request():
    errors, timesteps = torch.tensor([1.0, torch.nan, 2.0, torch.inf]), torch.tensor([0, 0, 600, 999])
    assert table_values(loss_table([errors], timesteps, 1000)) == {
        "loss/level_0": 1.5,
        "loss/level_0/quartile_1": 1.0,
        "loss/level_0/quartile_3": 2.0,
    }
    kept = table_values(loss_table([errors], timesteps, 1000, leave_out_non_finite=False))
    assert math.isnan(kept["loss/level_0/quartile_1"])
    assert kept["loss/level_0/quartile_3"] == 2.0  # the others do not spread
    assert kept["loss/level_0/quartile_4"] == math.inf


def test_a_table_without_rows_says_nothing():
    table = loss_table([torch.empty(0), torch.empty(0)], torch.empty(0, dtype=torch.int64), 1000)
    assert all(math.isnan(mean) for mean in level_means(table))
    assert table_values(table, "validation_loss") == {}


class NoFloat64(TorchDispatchMode):
    """Apple's GPUs have no float64: here the device "meta" stands for them."""

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        if isinstance(result, torch.Tensor) and result.device.type == "meta" and result.dtype == torch.float64:
            raise TypeError("This device has no float64.")
        return result


def test_means_make_no_float64_on_the_device():
    # A meta tensor holds no numbers, so it can only get as far as the copy to the CPU.
    with NoFloat64(), pytest.raises(NotImplementedError, match="meta"):
        level_means(torch.zeros(2, 2, 4, device="meta"))
