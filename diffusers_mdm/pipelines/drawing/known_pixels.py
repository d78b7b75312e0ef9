# SPDX-License-Identifier: Apache-2.0
"""Keeping known pixels fixed: at every level and step they are replaced by the given pixels with noise added.

The levels of a pyramid have independent noise, so given x^i, the sample of level i at time t is distributed as q(z_t^i
| x^i) = N(alpha_t^i x^i, (sigma_t^i)^2), independently of the other levels; this is exact. The approximation is that
the other levels are denoised together with a single sample of z_t^i instead of the average over all samples, and
receive information about x^i only through its noise.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from diffusers_mdm.pyramid import Pyramid

Masks = list[torch.Tensor | None]


@dataclass
class KnownPixels:
    """The known pixels of a drawing.

    All attributes are lists by level, level 0 first; outer levels that are missing are generated entirely.

    Attributes:
        pixels: known images `(B, C, H_i, W_i)` in [0, 1].
        clean: the model's representation of them, `encode_pyramid(pixels)`: the same in [-1, 1], or latents.
        noise: N(0, 1) noise with the shapes of `clean`.
        drawn: for each level `(B, 1, h_i, w_i)` bool in the sizes of `clean`, True for pixels that are generated; None
            if the whole level is known.
        drawn_pixels: the same in the sizes of `pixels`.
    """

    pixels: Pyramid
    clean: Pyramid
    noise: Pyramid
    drawn: Masks
    drawn_pixels: Masks

    @classmethod
    def whole(cls, pixels: Pyramid, clean: Pyramid, noise: Pyramid) -> KnownPixels:
        """Create an object for levels of which every pixel is known.

        Args:
            pixels: see the attribute.
            clean: see the attribute.
            noise: N(0, 1) noise of these levels; further levels are ignored.
        """
        nothing: Masks = [None] * len(pixels)
        return cls(pixels, clean, noise[: len(pixels)], nothing, nothing)

    def of_level(self, index: int) -> KnownPixels:
        """Return the known pixels of one level, as if it were level 0."""
        one = slice(index, index + 1)
        return KnownPixels(self.pixels[one], self.clean[one], self.noise[one], self.drawn[one], self.drawn_pixels[one])

    def put_into_samples(self, levels: Sequence[torch.Tensor], truth: Sequence[torch.Tensor]) -> Pyramid:
        """Replace known pixels of samples by `truth`.

        Args:
            levels: levels of the samples, innermost first.
            truth: `clean`, or `clean` with the noise of a timestep.
        """
        return _replaced(levels, truth, self.drawn)

    def put_into_images(self, levels: Sequence[torch.Tensor]) -> Pyramid:
        """Replace known pixels of images in [0, 1], innermost first, by the given ones."""
        return _replaced(levels, self.pixels, self.drawn_pixels)


def _replaced(levels: Sequence[torch.Tensor], truth: Sequence[torch.Tensor], drawn: Masks) -> Pyramid:
    """Return levels with `truth` wherever `drawn` is not True."""
    replaced = [
        known.to(level.dtype) if mask is None else torch.where(mask, level, known.to(level.dtype))
        for level, known, mask in zip(levels, truth, drawn, strict=False)
    ]
    return [*replaced, *levels[len(replaced) :]]


def pool_mask(mask: torch.Tensor, like: Sequence[torch.Tensor]) -> Masks:
    """Reduce a mask to every level: a pixel is repainted if any pixel of the full image inside it is.

    So no level receives information about the area to be repainted.

    Args:
        mask: `(B, 1, H, W)` bool, True where to repaint.
        like: levels `(B, C, H_i, W_i)`, innermost first; H_i divides H.

    Returns:
        `(B, 1, H_i, W_i)` bool, innermost first.
    """
    as_numbers = mask.to(torch.float32)
    return [torch.nn.functional.adaptive_max_pool2d(as_numbers, tuple(level.shape[-2:])) > 0 for level in like]
