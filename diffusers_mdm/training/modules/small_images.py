# SPDX-License-Identifier: Apache-2.0
"""What a model for super-resolution sees in training beside the noisy image: the small image, enlarged and noisy."""

from __future__ import annotations

from typing import NamedTuple

import torch

from ...pipelines.pipeline_mdm_super_resolution import add_condition_noise, enlarge
from ...pyramid import Pyramid
from ..recipe.super_resolution import SuperResolutionRecipe


class SmallImages(NamedTuple):
    """Enlarged images as further input channels.

    Attributes:
        enlarged: `(B, C, H, W)`, with noise.
        noise_level: `(B,)`, its standard deviation.
    """

    enlarged: torch.Tensor
    noise_level: torch.Tensor


def shapes_of_draws(image: torch.Tensor) -> list[tuple[int, ...]]:
    """Return the shapes of the N(0, 1) numbers that `noisy_small_images` needs for images `(B, C, H, W)`."""
    return [tuple(image.shape), (len(image), 1)]


def noisy_small_images(image: torch.Tensor, draws: Pyramid, recipe: SuperResolutionRecipe) -> SmallImages:
    """Reduce images to the low resolution, enlarge them again, and add noise.

    Args:
        image: clean images `(B, C, H, W)` in [-1, 1].
        draws: N(0, 1) numbers in the shapes of `shapes_of_draws`: the noise, and what its level is computed from.
        recipe: the low resolution, and the largest level of noise.
    """
    noise, normal = draws
    # The distribution function maps normal numbers to uniform ones.
    noise_level = recipe.max_noise_level * torch.special.ndtr(normal[:, 0])
    return SmallImages(add_condition_noise(small_images(image, recipe), noise, noise_level), noise_level)


def small_images(image: torch.Tensor, recipe: SuperResolutionRecipe) -> torch.Tensor:
    """Reduce images `(B, C, H, W)` to the low resolution by averaging, and enlarge them again."""
    height, width = image.shape[-2:]
    factor = max(height, width) // recipe.low_resolution
    return enlarge(torch.nn.functional.avg_pool2d(image, factor), height, width)
