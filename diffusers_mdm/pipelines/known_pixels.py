# SPDX-License-Identifier: Apache-2.0
"""Pixels that are given and stay: their noised truth replaces what the model makes of them, level by level.

The levels of a pyramid are noised independently of one another, so given x^i the sample of level i at time t is
q(z_t^i | x^i) = N(alpha_t^i x^i, (sigma_t^i)^2), whatever the other levels are: no approximation is made there. What
is approximate is the rest: the other levels are denoised beside one draw of z_t^i, not beside the average over all
draws, and see the truth only as far as the noise of level i lets it through.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch

from diffusers_mdm.pyramid import Pyramid


@dataclass
class KnownPixels:
    """What is known of the pictures that are drawn.

    Attributes:
        pixels: known pictures `(B, C, H_i, W_i)` in [0, 1] of level 0 and those around it, innermost first; the
            outermost ones may be missing, and are drawn.
        drawn: for each of these levels `(B, 1, H_i, W_i)` bool, True where the model draws; None where it draws
            nothing of the level.
        noise: N(0, 1) `(B, C, H_i, W_i)` of these levels.
    """

    pixels: Pyramid
    drawn: list[torch.Tensor | None]
    noise: Pyramid = field(default_factory=list)

    @classmethod
    def whole(cls, pixels: Pyramid, noise: Pyramid) -> KnownPixels:
        """Levels of which every pixel is known.

        Args:
            pixels: as the attribute.
            noise: N(0, 1) of these levels; further ones are left out.
        """
        return cls(pixels, [None] * len(pixels), noise[: len(pixels)])

    @property
    def clean(self) -> Pyramid:
        """The known pictures in [-1, 1]."""
        return [2 * level - 1 for level in self.pixels]

    def put_into(self, levels: Sequence[torch.Tensor], truth: Sequence[torch.Tensor]) -> Pyramid:
        """Levels in which `truth` has replaced what is known.

        Args:
            levels: of the pictures or samples, innermost first.
            truth: what is known, in the same units, of the first of these levels.
        """
        replaced = [
            known.to(level.dtype) if drawn is None else torch.where(drawn, level, known.to(level.dtype))
            for level, known, drawn in zip(levels, truth, self.drawn, strict=False)
        ]
        return [*replaced, *levels[len(replaced) :]]


def pool_mask(mask: torch.Tensor, shapes: Sequence[Sequence[int]]) -> list[torch.Tensor]:
    """A mask at every level: a pixel is repainted as soon as one of the picture's pixels inside it is.

    So no level sees anything of what is to be painted over.

    Args:
        mask: `(B, 1, H, W)` bool, True where to repaint.
        shapes: `(B, C, H_i, W_i)` of every level, innermost first; H_i divides H.

    Returns:
        `(B, 1, H_i, W_i)` bool, innermost first.
    """
    as_numbers = mask.to(torch.float32)
    return [torch.nn.functional.adaptive_max_pool2d(as_numbers, tuple(shape[-2:])) > 0 for shape in shapes]
