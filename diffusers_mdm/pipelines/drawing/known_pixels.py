# SPDX-License-Identifier: Apache-2.0
"""Pixels that are given and stay: their noised truth replaces what the model makes of them, level by level.

The levels of a pyramid are noised independently of one another, so given x^i the sample of level i at time t is
q(z_t^i | x^i) = N(alpha_t^i x^i, (sigma_t^i)^2), whatever the other levels are: no approximation is made there. What
is approximate is the rest: the other levels are denoised beside one draw of z_t^i, not beside the average over all
draws, and see the truth only as the noise of level i lets it through.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from diffusers_mdm.pyramid import Pyramid

Masks = list[torch.Tensor | None]


@dataclass
class KnownPixels:
    """What is known of the pictures that are drawn.

    Everything is listed by level, level 0 first; the outermost levels may be missing, and are drawn.

    Attributes:
        pixels: known pictures `(B, C, H_i, W_i)` in [0, 1].
        clean: what the model denoises of them, `encode_pyramid(pixels)`: the same in [-1, 1], or latents.
        noise: N(0, 1) in the shapes of `clean`.
        drawn: for each level `(B, 1, h_i, w_i)` bool in the sizes of `clean`, True where the model draws; None where
            it draws nothing of the level.
        drawn_pixels: the same in the sizes of `pixels`.
    """

    pixels: Pyramid
    clean: Pyramid
    noise: Pyramid
    drawn: Masks
    drawn_pixels: Masks

    @classmethod
    def whole(cls, pixels: Pyramid, clean: Pyramid, noise: Pyramid) -> KnownPixels:
        """Levels of which every pixel is known.

        Args:
            pixels: as the attribute.
            clean: as the attribute.
            noise: N(0, 1) of these levels; further ones are left out.
        """
        nothing: Masks = [None] * len(pixels)
        return cls(pixels, clean, noise[: len(pixels)], nothing, nothing)

    def of_level(self, index: int) -> KnownPixels:
        """What is known of one level only, as if it were level 0."""
        one = slice(index, index + 1)
        return KnownPixels(self.pixels[one], self.clean[one], self.noise[one], self.drawn[one], self.drawn_pixels[one])

    def put_into_samples(self, levels: Sequence[torch.Tensor], truth: Sequence[torch.Tensor]) -> Pyramid:
        """Samples in which `truth` has replaced what is known.

        Args:
            levels: of the samples, innermost first.
            truth: `clean`, or what it is at a time step.
        """
        return _replaced(levels, truth, self.drawn)

    def put_into_pictures(self, levels: Sequence[torch.Tensor]) -> Pyramid:
        """Pictures in [0, 1], innermost first, in which the given pixels have replaced what was made of them."""
        return _replaced(levels, self.pixels, self.drawn_pixels)


def _replaced(levels: Sequence[torch.Tensor], truth: Sequence[torch.Tensor], drawn: Masks) -> Pyramid:
    """Levels in which `truth` stands wherever `drawn` is not True."""
    replaced = [
        known.to(level.dtype) if mask is None else torch.where(mask, level, known.to(level.dtype))
        for level, known, mask in zip(levels, truth, drawn, strict=False)
    ]
    return [*replaced, *levels[len(replaced) :]]


def pool_mask(mask: torch.Tensor, like: Sequence[torch.Tensor]) -> Masks:
    """A mask at every level: a pixel is repainted as one of the picture's pixels inside it is.

    So no level sees anything of what is to be painted over.

    Args:
        mask: `(B, 1, H, W)` bool, True where to repaint.
        like: levels `(B, C, H_i, W_i)`, innermost first; H_i divides H.

    Returns:
        `(B, 1, H_i, W_i)` bool, innermost first.
    """
    as_numbers = mask.to(torch.float32)
    return [torch.nn.functional.adaptive_max_pool2d(as_numbers, tuple(level.shape[-2:])) > 0 for level in like]
