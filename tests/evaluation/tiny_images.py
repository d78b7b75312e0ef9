# SPDX-License-Identifier: Apache-2.0
"""Small real objects for the tests of evaluation: images, and a feature extractor whose features are easy to check."""

from collections.abc import Sequence

import torch

from diffusers_mdm.evaluation.images import TensorImages


class MeanColours:
    """The mean colours of the four quarters of an image: twelve features."""

    def __init__(self, name: str = "inception", fingerprint: str = "mean colours"):
        self.name, self.fingerprint = name, fingerprint

    def __call__(self, images: torch.Tensor) -> torch.Tensor:
        """Features `(N, 12)` of `(N, 3, H, W)`."""
        return torch.nn.functional.adaptive_avg_pool2d(images.float() / 255, 2).flatten(1)


def random_images(number: int, side: int = 32, seed: int = 0, captions: Sequence[str] | None = None) -> TensorImages:
    """Return images of smooth noise; image n has the caption "picture n"."""
    generator = torch.Generator().manual_seed(seed)
    small = torch.rand(number, 3, 4, 4, generator=generator)
    pixels = torch.nn.functional.interpolate(small, (side, side), mode="bilinear")
    names = [f"picture {entry}" for entry in range(number)] if captions is None else captions
    return TensorImages((255 * pixels).round().to(torch.uint8), names)
