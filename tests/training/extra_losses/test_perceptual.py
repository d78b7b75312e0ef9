# SPDX-License-Identifier: Apache-2.0
"""The perceptual loss by its definition."""

import pytest
import torch

from diffusers_mdm import MatryoshkaScheduler, build_pyramid, pyramid_noise
from diffusers_mdm.training.extra_losses.extra_loss import LossInputs
from diffusers_mdm.training.extra_losses.perceptual import PerceptualLoss
from diffusers_mdm.training.recipe.stage import PerceptualRecipe
from tests.training.extra_losses.tiny_networks import TinyMaps


def inputs(error: float = 0.1, outer_rows: int = 4) -> LossInputs:
    pixels = torch.randint(0, 256, (4, 3, 16, 16), dtype=torch.uint8)
    clean = build_pyramid(pixels.float() / 127.5 - 1, [8, 16])
    clean[1] = clean[1][:outer_rows]
    predicted = [level + error * torch.randn_like(level) for level in clean]
    powers = [torch.tensor([0.0, 0.25, 0.5, 1.0]), torch.tensor([0.0, 0.1, 0.2, 0.4])[:outer_rows]]
    return LossInputs(pixels, clean, predicted, powers)


def loss_of(**fields) -> PerceptualLoss:
    return PerceptualLoss(PerceptualRecipe(network="tiny", **fields), TinyMaps())


def test_the_true_image_has_no_error():
    assert torch.equal(loss_of().errors(inputs(error=0.0)), torch.zeros(4))


def test_errors_grow_with_the_signal_power():
    """Differences of features between 0 and 4 are multiplied by it."""
    given = inputs()
    errors = loss_of(levels=(0,)).errors(given)
    assert errors[0] == 0
    assert (errors[1:] > 0).all()
    assert (errors <= 4 * given.powers[0]).all()


def test_levels_are_added_and_scaled_to_the_samples_that_they_have():
    given = inputs(outer_rows=2)
    inner, outer, both = (loss_of(levels=levels).errors(given) for levels in ((0,), (1,), (0, 1)))
    torch.testing.assert_close(both, inner + outer)
    assert torch.equal(outer[2:], torch.zeros(2))
    assert torch.equal(loss_of().errors(given), outer)  # the outermost level of the stage
    alone = LossInputs(
        given.pixels[:2],
        *([level[:2] for level in part] for part in (given.clean, given.predicted)),
        [power[:2] for power in given.powers],
    )
    torch.testing.assert_close(outer[:2], 2 * loss_of().errors(alone))


def test_gradients_reach_the_prediction_alone():
    given = inputs()
    for level in given.predicted:
        level.requires_grad_()
    loss_of().errors(given).sum().backward()
    assert given.predicted[0].grad is None
    assert given.predicted[1].grad[1:].abs().sum() > 0


@pytest.mark.parametrize("scaling", ["shift", "rescale"])
def test_the_clean_images_that_v_implies(scaling):
    scheduler = MatryoshkaScheduler(base_sample_size=4, level_scaling=scaling)
    clean = build_pyramid(torch.rand(2, 3, 8, 8) * 2 - 1, [4, 8])
    noise, timesteps = pyramid_noise([level.shape for level in clean]), torch.tensor([100, 800])
    noisy, velocities = (change(clean, noise, timesteps) for change in (scheduler.add_noise, scheduler.get_velocity))
    for found, true in zip(scheduler.clean_of_velocities(velocities, noisy, timesteps), clean, strict=True):
        torch.testing.assert_close(found, true, atol=1e-5, rtol=0)
