# SPDX-License-Identifier: Apache-2.0
"""Images with given averages: nearest, in range, exact on the grid of 8 bits."""

import pytest
import torch
import torch.nn.functional as F

from diffusers_mdm.pipelines.drawing.consistency import project_onto_average, project_prediction, round_to_eight_bits
from diffusers_mdm.pyramid import pyramid_noise
from diffusers_mdm.schedulers.block_averages import average_down
from tests.pipelines.tiny_pipeline import make_scheduler, seed


def images(factor: int, spread: float = 0.8) -> tuple[torch.Tensor, torch.Tensor]:
    """Images that leave [-1, 1] here and there, and averages with the ends of the range among them."""
    image = torch.randn(2, 3, 4 * factor, 2 * factor, generator=seed(0)) * spread
    average = torch.rand(2, 3, 4, 2, generator=seed(1)) * 2 - 1
    average[0, 0, 0, 0], average[0, 0, 0, 1] = 1.0, -1.0
    return image, average


@pytest.mark.parametrize("factor", [2, 4, 16])
def test_projection_has_the_averages_and_stays_in_range(factor):
    image, average = images(factor)
    projected = project_onto_average(image, average)
    assert projected.abs().max() <= 1 + 1e-6
    torch.testing.assert_close(F.avg_pool2d(projected, factor), average, atol=1e-6, rtol=0)
    torch.testing.assert_close(project_onto_average(projected, average), projected, atol=2e-6, rtol=0)


def test_projection_is_the_nearest_image():
    # Optimality: one multiplier a block; free pixels moved by it, pixels at an end would have to move beyond it.
    image, average = images(4)
    projected = project_onto_average(image, average).double()
    start = image.clamp(-1, 1).double()
    for row, channel, y, x in [(0, 0, 1, 1), (1, 2, 3, 0), (0, 1, 2, 1)]:
        block = (row, channel, slice(4 * y, 4 * y + 4), slice(4 * x, 4 * x + 4))
        moved, end = (projected - start)[block].flatten(), projected[block].flatten()
        free = end.abs() < 1 - 1e-6
        shift = moved[free].mean()
        torch.testing.assert_close(moved[free], shift.expand(int(free.sum())), atol=1e-5, rtol=0)
        assert (moved[~free].abs() <= shift.abs() + 1e-5).all()


def test_of_a_clip_every_given_frame_is_projected_and_the_others_are_free():
    clip = torch.randn(2, 3, 6, 8, 4, generator=seed(0))
    average = torch.rand(2, 3, 3, 4, 2, generator=seed(1)) * 2 - 1
    projected = project_onto_average(clip, average)
    for frame in range(6):
        expected = clip[:, :, frame].clamp(-1, 1)
        if frame % 2 == 0:
            expected = project_onto_average(clip[:, :, frame], average[:, :, frame // 2])
        torch.testing.assert_close(projected[:, :, frame], expected, atol=1e-6, rtol=0)


def test_an_image_with_the_averages_stays():
    image = torch.rand(1, 3, 8, 8, generator=seed(0)) * 2 - 1
    torch.testing.assert_close(project_onto_average(image, F.avg_pool2d(image, 2)), image, atol=1e-6, rtol=0)


@pytest.mark.parametrize("factor", [2, 4, 16])
def test_eight_bits_sum_to_the_given_number_exactly(factor):
    image, _ = images(factor)
    given = torch.randint(0, 256, (2, 3, 4, 2), generator=seed(2))
    given[0, 0, 0, 0], given[0, 0, 0, 1] = 0, 255
    average = given / 127.5 - 1
    rounded = round_to_eight_bits(project_onto_average(image, average), average)
    numbers = ((rounded + 1) * 127.5).double()
    whole = numbers.round()
    torch.testing.assert_close(numbers, whole, atol=1e-4, rtol=0)
    assert whole.min() >= 0
    assert whole.max() <= 255
    assert torch.equal(F.avg_pool2d(whole, factor), given.double())


def test_eight_bits_move_each_pixel_by_less_than_a_step():
    image, average = images(4)
    projected = project_onto_average(image, average)
    rounded = round_to_eight_bits(projected, average)
    assert ((rounded - projected) * 127.5).abs().max() < 1 + 1e-3
    pooled = F.avg_pool2d((rounded + 1) * 127.5, 4)
    assert (pooled - (average + 1) * 127.5).abs().max() <= 1 / (2 * 16) + 1e-3


@pytest.mark.parametrize("prediction_type", ["epsilon", "v_prediction", "sample"])
@pytest.mark.parametrize("level_scaling", ["shift", "rescale"])
def test_the_scheduler_finds_the_averages_in_a_projected_prediction(prediction_type, level_scaling):
    scheduler = make_scheduler(prediction_type=prediction_type, level_scaling=level_scaling)
    scheduler.set_timesteps(4)
    shapes = [(2, 3, 8, 8), (2, 3, 16, 16)]
    sample, prediction = pyramid_noise(shapes, seed(0)), pyramid_noise(shapes, seed(1))
    average = torch.rand(2, 3, 8, 8, generator=seed(2)) * 2 - 1
    timestep = scheduler.timesteps[1]
    changed = project_prediction(scheduler, prediction, sample, timestep, average)
    clean = scheduler.step(changed, timestep, sample).pred_original_sample
    torch.testing.assert_close(clean[0], average, atol=1e-4, rtol=0)
    torch.testing.assert_close(F.avg_pool2d(clean[1], 2), average, atol=1e-4, rtol=0)


# Frames and sides: a given clip of 4 frames of 8 pixels, of 1 frame (with fewer pixels or as many), of 4 frames of 16.
@pytest.mark.parametrize("given", [(4, 8), (1, 8), (1, 4), (4, 16)])
def test_levels_of_a_clip_contain_the_given_one_or_its_averages(given):
    scheduler = make_scheduler()
    scheduler.set_timesteps(4)
    shapes = [(2, 3, 1, 4, 4), (2, 3, 1, 8, 8), (2, 3, 4, 8, 8), (2, 3, 4, 16, 16)]
    sample, prediction = pyramid_noise(shapes, seed(0)), pyramid_noise(shapes, seed(1))
    average = torch.rand(2, 3, given[0], given[1], given[1], generator=seed(2)) * 2 - 1
    changed = project_prediction(scheduler, prediction, sample, scheduler.timesteps[1], average)
    clean = scheduler.step(changed, scheduler.timesteps[1], sample).pred_original_sample
    for level in clean:
        both = sorted([level, average], key=torch.numel)
        down = average_down(both[1], both[0]) if level.shape != average.shape else both[1]
        torch.testing.assert_close(down, both[0], atol=1e-4, rtol=0)
