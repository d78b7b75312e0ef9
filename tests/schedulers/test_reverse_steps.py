# SPDX-License-Identifier: Apache-2.0
"""Reverse steps: what they invert, what they agree with, how they threshold and draw noise."""

import pytest
import torch
from diffusers import DDIMScheduler, DPMSolverMultistepScheduler

from diffusers_mdm.pyramid import build_pyramid, pyramid_noise
from diffusers_mdm.schedulers import MatryoshkaScheduler
from diffusers_mdm.schedulers.predictions import dynamic_threshold

SIDES = (4, 16)
UNBOUNDED = {"clip_sample": False}


@pytest.fixture
def pyramid():
    return build_pyramid(torch.rand(3, 3, 16, 16) * 2 - 1, SIDES)


@pytest.fixture
def noise(pyramid):
    return pyramid_noise([level.shape for level in pyramid])


def assert_pyramids_close(actual, expected, atol=1e-5):
    for level, other in zip(actual, expected, strict=True):
        torch.testing.assert_close(level, other, atol=atol, rtol=0)


def output_for(scheduler, clean, noise, t):
    """What a perfect network answers at t for this clean image and this noise."""
    if scheduler.config.prediction_type == "v_prediction":
        return scheduler.get_velocity(clean, noise, torch.tensor(t))
    if scheduler.config.prediction_type == "epsilon":
        return noise
    scale = scheduler.config.level_scaling == "rescale"
    return [level / (level.shape[-1] / SIDES[0] if scale else 1) for level in clean]


@pytest.mark.parametrize("algorithm", ["ddim", "dpmsolver++"])
@pytest.mark.parametrize("level_scaling", ["shift", "rescale"])
@pytest.mark.parametrize("prediction_type", ["v_prediction", "epsilon", "sample"])
def test_deterministic_steps_follow_a_known_image_and_noise(pyramid, noise, algorithm, level_scaling, prediction_type):
    scheduler = MatryoshkaScheduler(
        algorithm=algorithm, level_scaling=level_scaling, prediction_type=prediction_type, **UNBOUNDED
    )
    scheduler.set_timesteps(timesteps=[900, 600, 350, 100, 3])
    sample = scheduler.add_noise(pyramid, noise, scheduler.timesteps[:1])
    for t in scheduler.timesteps.tolist():
        output = scheduler.step(output_for(scheduler, pyramid, noise, t), t, sample)
        sample, later = output.prev_sample, scheduler.previous_timestep(t)
        expected = scheduler.add_noise(pyramid, noise, torch.tensor(later)) if later >= 0 else pyramid
        assert_pyramids_close(sample, expected, atol=1e-4)
        assert_pyramids_close(output.pred_original_sample, pyramid, atol=1e-3)


def test_predictions_of_every_type_agree(pyramid, noise):
    results = []
    for prediction_type in ("v_prediction", "epsilon", "sample"):
        scheduler = MatryoshkaScheduler(prediction_type=prediction_type, thresholding=True, sample_max_value=1.2)
        scheduler.set_timesteps(10)
        sample = scheduler.add_noise(pyramid, noise, torch.tensor(400))
        output = output_for(scheduler, pyramid, noise, 400)
        results.append(scheduler.step(output, 400, sample, eta=0.3, variance_noise=noise).prev_sample)
    assert_pyramids_close(results[1], results[0])
    assert_pyramids_close(results[2], results[0])


def test_ddim_is_that_of_diffusers_on_one_level():
    timesteps = [950, 600, 100, 10]
    ours = MatryoshkaScheduler(base_sample_size=8, clip_sample_range=0.7)
    theirs = DDIMScheduler(
        beta_schedule="squaredcos_cap_v2",
        prediction_type="v_prediction",
        clip_sample_range=0.7,
        num_train_timesteps=1000,
    )
    ours.set_timesteps(timesteps=timesteps)
    sample, output, noise = torch.randn(3, 2, 3, 8, 8)
    for eta in (0.0, 0.4, 1.0):
        # diffusers goes T // N down.
        theirs.set_timesteps(2)
        ours.set_timesteps(timesteps=[750, 250])
        actual = ours.step(output, 750, sample, eta=eta, variance_noise=noise)
        expected = theirs.step(output, 750, sample, eta=eta, variance_noise=noise, use_clipped_model_output=True)
        torch.testing.assert_close(actual.prev_sample, expected.prev_sample, atol=2e-5, rtol=0)
        torch.testing.assert_close(actual.pred_original_sample, expected.pred_original_sample, atol=2e-5, rtol=0)


# DPM-Solver++


def answer(sample, t):
    """Some network, smooth in both arguments."""
    return torch.tanh(sample + t / 1000) * 0.7


@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")
@pytest.mark.parametrize("solver_order", [1, 2])
@pytest.mark.parametrize("timesteps", [[990, 700, 400, 200, 50], list(range(980, 0, -49))])
def test_dpm_solver_is_that_of_diffusers_on_one_level(solver_order, timesteps):
    ours = MatryoshkaScheduler(algorithm="dpmsolver++", solver_order=solver_order, base_sample_size=8, **UNBOUNDED)
    theirs = DPMSolverMultistepScheduler(
        beta_schedule="squaredcos_cap_v2", prediction_type="v_prediction", solver_order=solver_order
    )
    ours.set_timesteps(timesteps=timesteps)
    theirs.set_timesteps(timesteps=timesteps)
    actual = expected = torch.randn(2, 3, 8, 8)
    for t in timesteps:
        actual = ours.step(answer(actual, t), t, actual).prev_sample
        expected = theirs.step(answer(expected, t), t, expected).prev_sample
        torch.testing.assert_close(actual, expected, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("level_scaling", ["shift", "rescale"])
def test_first_order_dpm_solver_is_ddim(level_scaling):
    ddim = MatryoshkaScheduler(level_scaling=level_scaling, shift_power=2.0)
    first_order = MatryoshkaScheduler(
        level_scaling=level_scaling, shift_power=2.0, algorithm="dpmsolver++", solver_order=1
    )
    start = pyramid_noise([(2, 3, side, side) for side in SIDES])
    results = []
    for scheduler in (ddim, first_order):
        scheduler.set_timesteps(12)
        sample = start
        for t in scheduler.timesteps:
            sample = scheduler.step([answer(level, t) for level in sample], t, sample).prev_sample
        results.append(sample)
    assert_pyramids_close(*results)


def final_error(algorithm, num_steps, std=0.5):
    """Distance of a sampled point of N(0, std^2) data from where the exact probability flow carries it.

    The exact flow keeps x / sqrt(g std^2 + 1 - g); the exact v of such data is a multiple of x. Steps are even in log
    SNR, up to the timestep before the last, so that the last step onto the clean image does not count.
    """
    scheduler = MatryoshkaScheduler(algorithm=algorithm, shift_power=1.0, **UNBOUNDED)
    log_snr = torch.logit(scheduler.alphas_cumprod.double())
    targets = torch.linspace(log_snr[980].item(), log_snr[60].item(), num_steps + 1)
    timesteps = [int((log_snr - target).abs().argmin()) for target in targets]
    scheduler.set_timesteps(timesteps=timesteps)
    start = sample = [torch.ones(1, 1, side, side, dtype=torch.float64) for side in SIDES]
    for t in timesteps[:-1]:
        powers = [p.double() for p in scheduler.level_alphas_cumprod(sample, torch.tensor([t]))]
        outputs = [
            (p * (1 - p)) ** 0.5 * (1 - std**2) / (p * std**2 + 1 - p) * x for p, x in zip(powers, sample, strict=True)
        ]
        sample = scheduler.step(outputs, t, sample).prev_sample
    error = 0.0
    for level, first in zip(sample, start, strict=True):
        variances = []
        for t in (timesteps[0], timesteps[-1]):
            power = scheduler.alpha_cumprod(torch.tensor(t), level.shape[-1] / SIDES[0]).double()
            variances.append(power * std**2 + 1 - power)
        exact = first * (variances[1] / variances[0]) ** 0.5
        error = max(error, (level - exact).abs().max().item())
    return error


def test_second_order_converges_faster():
    errors = {algorithm: [final_error(algorithm, n) for n in (10, 20, 40)] for algorithm in ("ddim", "dpmsolver++")}
    coarse, middle, fine = errors["dpmsolver++"]
    assert middle < coarse / 2.5
    assert fine < middle / 2.5
    assert all(second < first / 2 for first, second in zip(errors["ddim"], errors["dpmsolver++"], strict=True)), errors


def test_solver_forgets_another_trajectory():
    start = torch.randn(1, 3, 8, 8)

    def run(scheduler):
        sample = start
        for t in scheduler.timesteps:
            sample = scheduler.step(answer(sample, t), t, sample).prev_sample
        return sample

    scheduler = MatryoshkaScheduler(algorithm="dpmsolver++")
    scheduler.set_timesteps(6)
    first = run(scheduler)
    scheduler.step(start, scheduler.timesteps[2], start)
    assert torch.equal(run(scheduler), first)
    scheduler.set_timesteps(6)
    assert torch.equal(run(scheduler), first)


def test_solver_starts_from_pure_noise():
    scheduler = MatryoshkaScheduler(
        beta_schedule="linear", rescale_betas_zero_snr=True, algorithm="dpmsolver++", timestep_spacing="trailing"
    )
    scheduler.set_timesteps(5)
    assert scheduler.timesteps[0] == 999
    sample = torch.randn(1, 3, 8, 8)
    for t in scheduler.timesteps:
        sample = scheduler.step(answer(sample, t), t, sample).prev_sample
        assert bool(sample.isfinite().all())


# Thresholds


def predicted(scheduler, clean):
    scheduler.set_timesteps(5)
    return scheduler.step(clean, 500, clean).pred_original_sample


def test_clipping():
    clean = [torch.randn(2, 3, side, side) for side in SIDES]
    sample = MatryoshkaScheduler(prediction_type="sample")
    assert_pyramids_close(predicted(sample, clean), [level.clamp(-1, 1) for level in clean], atol=0)
    narrow = MatryoshkaScheduler(prediction_type="sample", clip_sample_range=0.3)
    assert_pyramids_close(predicted(narrow, clean), [level.clamp(-0.3, 0.3) for level in clean], atol=0)
    free = MatryoshkaScheduler(prediction_type="sample", clip_sample=False)
    assert_pyramids_close(predicted(free, clean), clean, atol=0)


def test_dynamic_threshold_is_that_of_diffusers():
    theirs = DDIMScheduler(thresholding=True, dynamic_thresholding_ratio=0.9, sample_max_value=1.5)
    clean = torch.randn(4, 3, 8, 8) * torch.tensor([0.1, 1.0, 1.2, 5.0])[:, None, None, None]
    torch.testing.assert_close(dynamic_threshold(clean, 0.9, 1.5), theirs._threshold_sample(clean))


@pytest.mark.parametrize(("ratio", "max_value"), [(0.995, 100.0), (0.95, 1.5)])
def test_dynamic_threshold_takes_each_row_of_each_level_alone(ratio, max_value):
    scheduler = MatryoshkaScheduler(
        prediction_type="sample", thresholding=True, dynamic_thresholding_ratio=ratio, sample_max_value=max_value
    )
    clean = [torch.randn(3, 3, side, side) * torch.tensor([0.1, 1, 4])[:, None, None, None] for side in SIDES]
    together = predicted(scheduler, clean)
    assert all(level.abs().max() <= 1 for level in together)
    torch.testing.assert_close(together[0][0], clean[0][0])
    for index, level in enumerate(clean):
        for row in range(3):
            alone = predicted(scheduler, [level[row : row + 1]])
            assert torch.equal(alone[0][0], together[index][row])


# Noise


def stepped(sample, eta=1.0, t=500, **kwargs):
    scheduler = MatryoshkaScheduler()
    scheduler.set_timesteps(timesteps=[500, 250])
    return scheduler.step(sample, t, sample, eta=eta, **kwargs).prev_sample


def generators(*seeds):
    return [torch.Generator().manual_seed(seed) for seed in seeds]


def test_noise_is_drawn_innermost_level_first(pyramid):
    drawn = pyramid_noise([level.shape for level in pyramid], generators(7)[0])
    inner = torch.randn(pyramid[0].shape, generator=generators(7)[0])
    assert torch.equal(drawn[0], inner)
    assert_pyramids_close(stepped(pyramid, generator=generators(7)[0]), stepped(pyramid, variance_noise=drawn), atol=0)


@pytest.mark.parametrize("eta", [0.5, 1.0, None])
def test_rows_do_not_depend_on_their_batch(pyramid, eta):
    together = stepped(pyramid, eta, generator=generators(1, 2, 3))
    for row, seed in enumerate((1, 2, 3)):
        alone = stepped([level[row : row + 1] for level in pyramid], eta, generator=generators(seed))
        for level, single in zip(together, alone, strict=True):
            assert torch.equal(level[row : row + 1], single)


def test_thinning_batches_step_like_full_ones(pyramid):
    together = stepped(pyramid, generator=generators(1, 2, 3))
    thin = stepped([pyramid[0], pyramid[1][:1]], generator=generators(1, 2, 3))
    assert torch.equal(thin[0], together[0])
    assert torch.equal(thin[1], together[1][:1])


def test_deterministic_and_last_steps_draw_nothing(pyramid):
    generator = generators(1)[0]
    before = generator.get_state()
    stepped(pyramid, eta=0.0, generator=generator)
    stepped(pyramid, eta=1.0, t=250, generator=generator)
    assert torch.equal(generator.get_state(), before)


def test_injected_noise_has_the_ancestral_variance():
    sample = [torch.zeros(1, 1, 64, 64), torch.zeros(1, 1, 128, 128)]
    scheduler = MatryoshkaScheduler()
    for eta in (0.5, 1.0):
        for level, ratio in zip(stepped(sample, eta), (1, 2), strict=True):
            now, later = (scheduler.alpha_cumprod(torch.tensor(t), ratio).item() for t in (500, 250))
            expected = eta * ((1 - now / later) * (1 - later) / (1 - now)) ** 0.5
            assert level.std().item() == pytest.approx(expected, rel=0.05)


def test_both_ancestral_forms_agree(pyramid, noise):
    assert_pyramids_close(
        stepped(pyramid, 1.0, variance_noise=noise), stepped(pyramid, None, variance_noise=noise), 1e-5
    )


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("algorithm", ["ddim", "dpmsolver++"])
def test_dtype_is_kept_and_half_precision_rounded_once(dtype, algorithm):
    sample, output = torch.randn(2, 2, 3, 8, 8).to(dtype)
    results = []
    for cast in (dtype, torch.float32):
        scheduler = MatryoshkaScheduler(algorithm=algorithm)
        scheduler.set_timesteps(4)
        results.append(scheduler.step(output.to(cast), scheduler.timesteps[0], sample.to(cast)))
    for actual, expected in zip(results[0].values(), results[1].values(), strict=True):
        assert actual.dtype == dtype
        tolerance = max(torch.finfo(dtype).eps, 1e-6)
        torch.testing.assert_close(actual, expected.to(dtype), atol=tolerance, rtol=tolerance)
