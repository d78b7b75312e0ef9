# SPDX-License-Identifier: Apache-2.0
"""Agreement of levels: averages of an outer level move towards the level inside; exact pyramids do not change."""

from itertools import pairwise

import pytest
import torch

from diffusers_mdm.pyramid import build_pyramid, pyramid_noise
from diffusers_mdm.schedulers import MatryoshkaScheduler
from diffusers_mdm.schedulers.level_agreement import agree, agreement_strengths, average_down, enlarge
from tests.schedulers.gaussian_pyramid import GaussianPyramid

# Images of two and three levels, with a factor other than 2, wide ones, and clips whose levels differ in frames, sides
# or both.
SHAPES = {
    "two levels": [(2, 3, 4, 4), (2, 3, 8, 8)],
    "three levels, thinning": [(3, 3, 2, 2), (2, 3, 4, 4), (1, 3, 16, 16)],
    "wide": [(2, 3, 2, 4), (2, 3, 6, 12)],
    "clips": [(2, 3, 1, 4, 4), (2, 3, 4, 4, 4), (2, 3, 8, 8, 8)],
}
shapes_of_levels = pytest.mark.parametrize("shapes", SHAPES.values(), ids=SHAPES)


def differences(levels):
    """Return the largest difference between the averages of each level and the level inside it."""
    return [average_down(outer, inner[: len(outer)]) - inner[: len(outer)] for inner, outer in pairwise(levels)]


@shapes_of_levels
def test_enlarging_keeps_averages(shapes):
    for inner, outer in pairwise(shapes):
        difference = torch.randn(inner)[: outer[0]]
        torch.testing.assert_close(average_down(enlarge(difference, torch.zeros(outer)), difference), difference)


@shapes_of_levels
@pytest.mark.parametrize("strength", [0.0, 0.3, 1.0])
def test_the_difference_between_levels_is_reduced_by_the_strength(shapes, strength):
    levels = pyramid_noise(shapes)
    for kept, inner, outer in zip(levels, levels, levels[1:], strict=False):
        # Two levels at a time: with three, the middle one moves first.
        agreed = agree([inner, outer], [strength])
        assert torch.equal(agreed[0], kept)
        before, after = differences([inner, outer])[0], differences(agreed)[0]
        torch.testing.assert_close(after, (1 - strength) * before, atol=1e-6, rtol=1e-5)


@shapes_of_levels
def test_with_strength_1_averages_equal_the_level_inside_and_pixels_are_in_range(shapes):
    levels = [level.clamp(-0.8, 0.8) for level in pyramid_noise(shapes)]
    agreed = agree(levels, [1.0] * (len(shapes) - 1), bound=0.8)
    assert torch.equal(agreed[0], levels[0])
    assert all(level.abs().max() <= 0.8 + 1e-6 for level in agreed)
    for difference in differences(agreed):
        torch.testing.assert_close(difference, torch.zeros_like(difference), atol=2e-6, rtol=0)


def test_a_smooth_difference_is_enlarged_smoothly():
    """Blocks of pixels are not visible: neighbours across the edge of a block differ no more than within one."""
    ramp = torch.linspace(-1, 1, 8).expand(1, 1, 8, 8)
    steps = enlarge(ramp, torch.zeros(1, 1, 32, 32)).diff(dim=-1)[..., 4:-4]
    torch.testing.assert_close(steps, torch.full_like(steps, steps.mean().item()))


@pytest.mark.parametrize("strength", [0.5, 1.0])
def test_levels_that_agree_do_not_change(strength):
    levels = build_pyramid(torch.rand(2, 3, 16, 16) * 2 - 1, [4, 8, 16])
    for agreed, level in zip(agree(levels, [strength] * 2, bound=1.0), levels, strict=True):
        torch.testing.assert_close(agreed, level, atol=1e-6, rtol=0)


# In the scheduler's step


def stepped(outputs, samples, level_agreement, **config):
    scheduler = MatryoshkaScheduler(prediction_type="sample", base_sample_size=4, **config)
    scheduler.set_timesteps(timesteps=[500, 250])
    return scheduler.step(outputs, 500, samples, level_agreement=level_agreement)


CONFIGS = {
    "clipped": {},
    "narrow": {"clip_sample_range": 0.4},
    "unbounded": {"clip_sample": False},
    "thresholded": {"thresholding": True, "dynamic_thresholding_ratio": 0.9, "sample_max_value": 1.5},
    "rescaled": {"level_scaling": "rescale"},
    "two-step": {"algorithm": "dpmsolver++"},
}


@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)
def test_a_step_predicts_levels_that_agree(config):
    outputs, samples = (pyramid_noise([(2, 3, 4, 4), (2, 3, 8, 8), (1, 3, 16, 16)]) for _ in range(2))
    apart = stepped(outputs, samples, 0.0, **config)
    step = stepped(outputs, samples, 1.0, **config)
    assert max(difference.abs().max() for difference in differences(apart.pred_original_sample)) > 0.3
    for difference in differences(step.pred_original_sample):
        torch.testing.assert_close(difference, torch.zeros_like(difference), atol=1e-5, rtol=0)
    assert torch.equal(step.prev_sample[0], apart.prev_sample[0])
    assert not torch.equal(step.prev_sample[1], apart.prev_sample[1])
    only_middle = stepped(outputs, samples, [1.0, 0.0], **config)
    assert torch.equal(only_middle.prev_sample[1], step.prev_sample[1])
    assert torch.equal(only_middle.prev_sample[2], apart.prev_sample[2])


def test_strengths_of_levels_that_are_not_generated_are_ignored():
    level = torch.randn(1, 3, 4, 4)
    apart = stepped(level, level, 0.0).prev_sample
    assert torch.equal(stepped(level, level, [1.0, 0.5]).prev_sample, apart)
    assert torch.equal(stepped([level], [level], 1.0).prev_sample[0], apart)


@pytest.mark.parametrize("algorithm", ["ddim", "dpmsolver++"])
def test_agreement_does_not_change_samples_of_an_exact_denoiser(algorithm):
    gaussian = GaussianPyramid((2, 4))
    drawn = []
    for strength in (0.0, 1.0):
        scheduler = MatryoshkaScheduler(
            algorithm=algorithm, timestep_spacing="log_snr", clip_sample=False, base_sample_size=2
        )
        scheduler.set_timesteps(6)
        drawn.append(gaussian.drawn_covariance(scheduler, level_agreement=strength))
    torch.testing.assert_close(drawn[1], drawn[0], atol=1e-9, rtol=0)


@pytest.mark.parametrize("value", [-0.1, 1.5, True, None, "all", [0.5, 2.0], float("nan")])
def test_strengths_out_of_range_are_refused(value):
    with pytest.raises(ValueError, match=r"`level_agreement` is .* expected a number from 0"):
        agreement_strengths(value, 3)


def test_too_few_strengths_are_refused():
    with pytest.raises(ValueError, match="has 1 numbers for 3 levels; expected 2"):
        agreement_strengths([0.5], 3)
    assert agreement_strengths([0.5, 0.25, 1], 3) == [0.5, 0.25]
    assert agreement_strengths(1, 3) == [1.0, 1.0]
