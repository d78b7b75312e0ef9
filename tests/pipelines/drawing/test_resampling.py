# SPDX-License-Identifier: Apache-2.0
"""Going back up in noise: which steps are done how often, and how noisy samples are after it."""

import pytest
import torch

from diffusers_mdm.pipelines.drawing.resampling import diffuse_from, resampled_positions
from tests.pipelines.tiny_pipeline import make_scheduler, seed


@pytest.mark.parametrize(
    ("num_steps", "times", "jump", "expected"),
    [
        (3, 1, 1, [0, 1, 2]),
        (3, 2, 1, [0, 0, 1, 1, 2]),
        (5, 2, 2, [0, 1, 0, 1, 2, 3, 2, 3, 4]),
        (4, 3, 10, [0, 1, 2, 3]),
        (1, 5, 1, [0]),
    ],
)
def test_positions(num_steps, times, jump, expected):
    assert resampled_positions(num_steps, times, jump) == expected


def test_diffusing_twice_is_diffusing_once():
    scheduler = make_scheduler()
    shapes = [(1, 3, 8, 8), (1, 3, 16, 16)]
    clean = [torch.rand(shape, generator=seed(0)) for shape in shapes]
    nothing = [torch.zeros(shape) for shape in shapes]
    earlier, later = torch.tensor([300]), torch.tensor([700])
    # Signal: what is left of the image without any noise.
    via = diffuse_from(scheduler, scheduler.add_noise(clean, nothing, earlier), nothing, earlier, later)
    for got, expected in zip(via, scheduler.add_noise(clean, nothing, later), strict=True):
        torch.testing.assert_close(got, expected, atol=1e-5, rtol=0)
    # Spread: variances of independent noises add up to that of one diffusion.
    ones = [torch.ones(shape) for shape in shapes]
    old = diffuse_from(scheduler, scheduler.add_noise(nothing, ones, earlier), nothing, earlier, later)
    new = diffuse_from(scheduler, nothing, ones, earlier, later)
    for first, second, expected in zip(old, new, scheduler.add_noise(nothing, ones, later), strict=True):
        torch.testing.assert_close(first**2 + second**2, expected**2, atol=1e-5, rtol=0)
