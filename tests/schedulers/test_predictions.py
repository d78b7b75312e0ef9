# SPDX-License-Identifier: Apache-2.0
"""Prediction types: network outputs are converted to clean samples and noise at every level, and back."""

import itertools
import math

import pytest
import torch

from diffusers_mdm import MatryoshkaScheduler, build_pyramid, pyramid_noise
from diffusers_mdm.schedulers.block_averages import average_down, enlarge
from diffusers_mdm.schedulers.forward_process import velocity
from diffusers_mdm.schedulers.predictions import (
    PREDICTION_TYPES,
    RESIDUALS,
    LevelPrediction,
    amplitudes,
    level_predictions,
    noise_from_clean,
)

SIDES = (4, 8, 16)
POWERS = (0.999, 0.5, 0.01)
UNBOUNDED = {"clip_sample": False}
KINDS = [
    *itertools.product(["v_prediction", "sample"], PREDICTION_TYPES, PREDICTION_TYPES),
    ("epsilon", "residual", "epsilon"),
]


def make_scheduler(**config) -> MatryoshkaScheduler:
    return MatryoshkaScheduler(**{"base_sample_size": SIDES[0], **UNBOUNDED, **config})


@pytest.fixture
def clean() -> list[torch.Tensor]:
    return build_pyramid(torch.rand(2, 3, 16, 16) * 2 - 1, SIDES)


def perfect_outputs(
    scheduler: MatryoshkaScheduler, clean: list[torch.Tensor], sample: list[torch.Tensor], timestep: torch.Tensor
) -> list[torch.Tensor]:
    """Return the outputs of a network that knows the clean image."""
    images = iter(clean)
    return scheduler.with_clean_changed(
        [torch.zeros_like(level) for level in sample], sample, timestep, lambda _: next(images)
    )


@pytest.mark.parametrize("level_scaling", ["shift", "rescale"])
@pytest.mark.parametrize("kinds", KINDS, ids=" ".join)
def test_a_perfect_network_generates_the_clean_image(clean, kinds, level_scaling):
    scheduler = make_scheduler(prediction_type=list(kinds), level_scaling=level_scaling, sigma_data=[0.2, 0.5])
    scheduler.set_timesteps(4)
    sample = pyramid_noise([level.shape for level in clean])
    for timestep in scheduler.timesteps:
        outputs = perfect_outputs(scheduler, clean, sample, timestep)
        step = scheduler.step(outputs, timestep, sample)
        torch.testing.assert_close(step.pred_original_sample, clean, atol=2e-3 if timestep > 990 else 1e-4, rtol=0)
        sample = step.prev_sample
    torch.testing.assert_close(sample, clean, atol=1e-4, rtol=0)


@pytest.mark.parametrize("kinds", KINDS, ids=" ".join)
def test_losses_compare_v_for_every_prediction_type(clean, kinds):
    scheduler = make_scheduler(prediction_type=list(kinds), sigma_data=0.3)
    noise, timesteps = pyramid_noise([level.shape for level in clean]), torch.tensor([150, 700])
    sample = scheduler.add_noise(clean, noise, timesteps)
    velocities = scheduler.get_velocity(clean, noise, timesteps)
    outputs = [
        torch.cat(rows)
        for rows in zip(
            *(
                perfect_outputs(
                    scheduler, [level[[row]] for level in clean], [level[[row]] for level in sample], timesteps[row]
                )
                for row in range(2)
            ),
            strict=True,
        )
    ]
    torch.testing.assert_close(
        scheduler.velocities_of(outputs, clean, sample, timesteps), velocities, atol=1e-4, rtol=0
    )


def test_predictions_of_v_are_returned_as_they_are(clean):
    sample = pyramid_noise([level.shape for level in clean])
    outputs = [torch.randn_like(level) for level in sample]
    found = make_scheduler().velocities_of(outputs, clean, sample, torch.tensor([3, 4]))
    assert all(one is other for one, other in zip(found, outputs, strict=True))


def test_a_residual_over_zero_with_unit_deviation_is_v():
    alpha, sigma = amplitudes(0.3)
    output, sample = torch.randn(2, 3, 8, 8), torch.randn(2, 3, 8, 8)
    residual = LevelPrediction("residual", alpha, sigma, 1.0, torch.zeros_like(sample))
    torch.testing.assert_close(
        residual.clean(output, sample), LevelPrediction("v_prediction", alpha, sigma).clean(output, sample)
    )


def test_a_sample_residual_over_zero_with_unit_deviation_is_the_sample():
    alpha, sigma = amplitudes(0.3)
    output, sample = torch.randn(2, 3, 8, 8), torch.randn(2, 3, 8, 8)
    residual = LevelPrediction("sample_residual", alpha, sigma, 1.0, torch.zeros_like(sample))
    assert torch.equal(residual.clean(output, sample), output)


@pytest.mark.parametrize("power", POWERS)
def test_a_zero_sample_residual_is_the_enlarged_inner_image_at_any_noise(power):
    base, sample = torch.rand(1, 3, 8, 8), torch.randn(1, 3, 8, 8)
    residual = LevelPrediction("sample_residual", *amplitudes(power), 0.2, base)
    assert torch.equal(residual.clean(torch.zeros_like(sample), sample), base)


def test_a_sample_residual_learns_to_correct_the_inner_prediction(clean):
    """Its target is relative to the inner image that the network predicts, which gets no gradient from it."""
    scheduler = make_scheduler(prediction_type=["sample", "sample_residual"], sigma_data=0.2)
    inner, outer = clean[:2]
    noise, timesteps = pyramid_noise([inner.shape, outer.shape]), torch.tensor([150, 700])
    sample = scheduler.add_noise([inner, outer], noise, timesteps)
    wrong = (inner + 0.3).requires_grad_()
    outputs = [wrong, (outer - enlarge(wrong.detach(), outer)) / 0.2]
    found = scheduler.velocities_of(outputs, [inner, outer], sample, timesteps)
    truth = scheduler.get_velocity([inner, outer], noise, timesteps)
    torch.testing.assert_close(found[1], truth[1], atol=1e-4, rtol=0)
    assert found[0].requires_grad
    assert not found[1].requires_grad


@pytest.mark.parametrize("power", [0.999, 0.5, 0.001])
def test_the_target_of_a_residual_has_unit_variance(power):
    alpha, sigma = amplitudes(power)
    base, rest, noise = torch.rand(1, 1, 256, 256), 0.2 * torch.randn(1, 1, 256, 256), torch.randn(1, 1, 256, 256)
    target = LevelPrediction("residual", alpha, sigma, 0.2, base).output(
        base + rest, alpha * (base + rest) + sigma * noise
    )
    assert target.std().item() == pytest.approx(1, abs=0.02)


def test_a_zero_residual_at_pure_noise_gives_the_enlarged_inner_image(clean):
    """Pure noise contains no information, so the best estimate of a residual is zero."""
    scheduler = make_scheduler(
        prediction_type="residual", beta_schedule="linear", rescale_betas_zero_snr=True, sigma_data=0.2
    )
    scheduler.set_timesteps(5)
    sample = pyramid_noise([level.shape for level in clean])
    outputs = [torch.randn_like(sample[0]), *(torch.zeros_like(level) for level in sample[1:])]
    found = scheduler.step(outputs, 999, sample).pred_original_sample
    for inner, outer in itertools.pairwise(found):
        torch.testing.assert_close(outer, enlarge(inner, outer), atol=1e-5, rtol=0)
        torch.testing.assert_close(average_down(outer, inner), inner, atol=1e-5, rtol=0)


@pytest.mark.parametrize("kind", PREDICTION_TYPES)
def test_guiding_predictions_guides_clean_images(clean, kind):
    """Every x0 is an affine function of the predictions, so guiding predictions guides clean images."""
    scheduler = make_scheduler(prediction_type=kind)
    scheduler.set_timesteps(5)
    sample, timestep = scheduler.add_noise(clean, pyramid_noise([level.shape for level in clean]), 500), 500

    def images(outputs: list[torch.Tensor]) -> list[torch.Tensor]:
        return scheduler.step(outputs, timestep, sample).pred_original_sample

    without = [torch.randn_like(level) for level in sample]
    conditional = [torch.randn_like(level) for level in sample]
    guided = [u + 3 * (c - u) for u, c in zip(without, conditional, strict=True)]
    expected = [u + 3 * (c - u) for u, c in zip(images(without), images(conditional), strict=True)]
    torch.testing.assert_close(images(guided), expected, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("kind", RESIDUALS)
def test_clips_have_residuals_between_frames(kind):
    scheduler = make_scheduler(prediction_type=["sample", kind], sigma_data=0.2)
    clip = torch.rand(1, 3, 4, 8, 8) * 2 - 1
    clean = build_pyramid(clip, SIDES[:2], [2, 4])
    sample = pyramid_noise([level.shape for level in clean])
    scheduler.set_timesteps(3)
    outputs = perfect_outputs(scheduler, clean, sample, torch.tensor(400))
    found = scheduler.step(outputs, 400, sample).pred_original_sample
    torch.testing.assert_close(found, clean, atol=1e-5, rtol=0)


def test_a_residual_is_relative_to_the_clipped_inner_image(clean):
    scheduler = MatryoshkaScheduler(prediction_type=["sample", "residual", "sample"], base_sample_size=4)
    scheduler.set_timesteps(3)
    sample = pyramid_noise([level.shape for level in clean])
    outputs = [torch.full_like(sample[0], 7.0), torch.zeros_like(sample[1]), torch.zeros_like(sample[2])]
    clipped = [torch.ones_like(sample[0]), *outputs[1:]]
    high, expected = (scheduler.step(given, 600, sample).pred_original_sample for given in (outputs, clipped))
    torch.testing.assert_close(high, expected)


def test_predictions_of_inner_levels_do_not_depend_on_outer_ones(clean):
    scheduler = make_scheduler(prediction_type=["sample", "residual", "v_prediction"], sigma_data=[0.1, 0.9])
    scheduler.set_timesteps(4)
    sample = pyramid_noise([level.shape for level in clean])
    outputs = [torch.randn_like(level) for level in sample]
    whole = scheduler.step(outputs, 300, sample).prev_sample
    for levels in (1, 2):
        torch.testing.assert_close(scheduler.step(outputs[:levels], 300, sample[:levels]).prev_sample, whole[:levels])


def test_prediction_types_of_levels():
    assert level_predictions("epsilon", 2) == ["epsilon", "epsilon"]
    assert level_predictions("residual", 3) == ["v_prediction", "residual", "residual"]
    assert level_predictions("sample_residual", 2) == ["sample", "sample_residual"]
    assert level_predictions(["sample", "residual", "epsilon"], 2) == ["sample", "residual"]


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"prediction_type": ["residual", "sample"]}, "level 0 has no level inside it"),
        ({"prediction_type": ["sample_residual", "sample"]}, '"sample_residual" could complete'),
        ({"prediction_type": []}, r"`prediction_type` is \[\]; expected one of v_prediction"),
        (
            {"prediction_type": ["sample", "flow"]},
            "v_prediction, epsilon, sample, residual, sample_residual, or a list",
        ),
        ({"sigma_data": 0.0}, "`sigma_data` is 0.0"),
        ({"sigma_data": [0.2, math.nan]}, "`sigma_data` is nan"),
    ],
)
def test_invalid_prediction_types_are_refused(config, message):
    with pytest.raises(ValueError, match=message):
        MatryoshkaScheduler(**config)


def test_more_levels_than_in_the_config_are_refused(clean):
    sample = pyramid_noise([level.shape for level in clean])
    for config in ({"prediction_type": ["sample", "residual"]}, {"prediction_type": "residual", "sigma_data": [0.2]}):
        scheduler = make_scheduler(**config)
        scheduler.set_timesteps(3)
        with pytest.raises(ValueError, match="are needed for the levels of this sample"):
            scheduler.step(sample, 5, sample)


@pytest.mark.parametrize("kind", RESIDUALS)
def test_a_single_outer_level_is_refused(clean, kind):
    scheduler = make_scheduler(prediction_type=["v_prediction", kind, kind])
    scheduler.set_timesteps(3)
    with pytest.raises(ValueError, match="pass the whole pyramid"):
        scheduler.step(clean[1], 5, clean[1])
    assert scheduler.step(clean[0], 5, clean[0]).prev_sample.shape == clean[0].shape


def test_the_config_is_saved_and_loaded(tmp_path):
    scheduler = make_scheduler(prediction_type=["sample", "residual"], sigma_data=[0.22])
    scheduler.save_pretrained(tmp_path)
    again = MatryoshkaScheduler.from_pretrained(tmp_path)
    assert again.config.prediction_type == ["sample", "residual"]
    assert again.config.sigma_data == [0.22]


@pytest.mark.parametrize("power", POWERS)
@pytest.mark.parametrize("prediction_type", [kind for kind in PREDICTION_TYPES if kind not in RESIDUALS])
def test_a_perfect_prediction_of_any_kind_gives_the_clean_sample_and_its_noise(prediction_type, power):
    clean, noise = torch.rand(2, 3, 4, 4).double() * 2 - 1, torch.randn(2, 3, 4, 4).double()
    alpha, sigma = amplitudes(power)
    sample = alpha * clean + sigma * noise
    perfect = {
        "v_prediction": velocity(clean, noise, torch.full((2,), power).double()),
        "epsilon": noise,
        "sample": clean,
    }
    found = LevelPrediction(prediction_type, alpha, sigma).clean(perfect[prediction_type], sample)
    torch.testing.assert_close(found, clean, atol=1e-6, rtol=0)
    torch.testing.assert_close(noise_from_clean(found, sample, alpha, sigma), noise, atol=1e-4, rtol=0)


@pytest.mark.parametrize("power", [0.0, *POWERS, 1.0])
def test_amplitudes_are_of_unit_power_as_numbers_and_as_tensors(power):
    alpha, sigma = amplitudes(power)
    assert alpha**2 + sigma**2 == pytest.approx(1)
    assert [float(part) for part in amplitudes(torch.tensor(power))] == pytest.approx([alpha, sigma], abs=1e-6)


def test_an_unknown_prediction_type_is_refused():
    with pytest.raises(ValueError, match="'flow'; expected one of v_prediction, epsilon, sample"):
        LevelPrediction("flow", 0.6, 0.8).clean(torch.zeros(1), torch.zeros(1))


def test_noise_cannot_be_predicted_from_pure_noise():
    scheduler = MatryoshkaScheduler(beta_schedule="linear", rescale_betas_zero_snr=True, prediction_type="epsilon")
    scheduler.set_timesteps(5)
    with pytest.raises(ValueError, match="pure noise"):
        scheduler.step(torch.zeros(1, 3, 8, 8), 999, torch.zeros(1, 3, 8, 8))
