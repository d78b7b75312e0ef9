# SPDX-License-Identifier: Apache-2.0
"""Noise in white corners, and disagreement of levels."""

import math

import pytest
import torch

from diffusers_mdm.evaluation.images import average_down
from diffusers_mdm.evaluation.levels import corner_noise, disagreement, pixel_distance
from tests.evaluation.tiny_images import random_images


def test_noise_is_the_standard_deviation_in_white_corners():
    real = torch.full((6, 3, 64, 64), 255, dtype=torch.uint8)
    real[:, :, :32] = 0  # the upper corners are not white
    grain = 128 + 10 * torch.randn(6, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    noise, corners = corner_noise(grain.round().to(torch.uint8), real)
    assert corners == 12
    assert noise == pytest.approx(10 / 255, rel=0.05)
    assert corner_noise(real, real) == (0.0, 12)


def test_without_white_corners_noise_is_not_a_number():
    dark = torch.zeros(2, 3, 16, 16, dtype=torch.uint8)
    noise, corners = corner_noise(dark, dark)
    assert math.isnan(noise)
    assert corners == 0


def test_the_distance_is_the_mean_over_images():
    images = torch.zeros(2, 3, 4, 4, dtype=torch.uint8)
    others = images.clone()
    others[1] = 51
    assert pixel_distance(images, others) == pytest.approx(0.1)


def test_levels_that_agree_differ_by_rounding_only():
    outer = random_images(4, side=64).pixels
    inner = average_down(outer, 16)
    assert disagreement([inner, outer])[0] <= 0.5 / 255
    brighter = (inner.int() + 20).clamp(max=255).to(torch.uint8)
    assert disagreement([brighter, outer])[0] == pytest.approx(20 / 255, rel=0.1)
    assert disagreement([outer]) == []
