# SPDX-License-Identifier: Apache-2.0
"""The pyramid: one picture at several resolutions, innermost (smallest) first.

A pyramid is a `list[Tensor]`; element i has shape `(B_i, C, H_i, W_i)` and holds D^i(x), the picture averaged down to
level i, in [-1, 1] when clean. Batches may thin outwards (B_0 >= B_1 >= ...): the rows of level i are the first B_i
rows of level i - 1.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from diffusers.utils.torch_utils import randn_tensor

Pyramid = list[torch.Tensor]


def as_pyramid(sample: torch.Tensor | Sequence[torch.Tensor]) -> tuple[Pyramid, bool]:
    """Give `sample` as a list of levels, and whether it came as one bare tensor (a pyramid of one level).

    Raises:
        ValueError: `sample` is neither a tensor nor a sequence of tensors.
    """
    if isinstance(sample, torch.Tensor):
        return [sample], True
    if isinstance(sample, (list, tuple)) and all(isinstance(level, torch.Tensor) for level in sample):
        return list(sample), False
    raise ValueError(
        f"Expected a tensor or a list of tensors (a pyramid, innermost level first), got {type(sample).__name__}."
    )


def check_pyramid(pyramid: Sequence[torch.Tensor], *, name: str = "sample") -> None:
    """Refuse what cannot be a pyramid: no level, wrong dimensions, unequal channels, batches that grow outwards,
    levels that shrink outwards.

    Args:
        pyramid: levels `(B_i, C, H_i, W_i)`, innermost first.
        name: what the error message calls it.
    """
    if len(pyramid) == 0:
        raise ValueError(f"`{name}` is an empty pyramid; pass at least the innermost level.")
    for index, level in enumerate(pyramid):
        if level.ndim != 4:
            raise ValueError(
                f"Level {index} of `{name}` has shape {tuple(level.shape)}; expected (batch, channels, height, width)."
            )
    for index in range(1, len(pyramid)):
        inner, outer = pyramid[index - 1], pyramid[index]
        if inner.shape[1] != outer.shape[1]:
            raise ValueError(
                f"Levels {index - 1} and {index} of `{name}` have {inner.shape[1]} and {outer.shape[1]} channels; "
                "every level of a pyramid has the same channels."
            )
        if outer.shape[0] > inner.shape[0]:
            raise ValueError(
                f"Level {index} of `{name}` has {outer.shape[0]} rows but level {index - 1} has {inner.shape[0]}; "
                "batches may only get smaller outwards. Is the pyramid given innermost (smallest) first?"
            )
        if outer.shape[2] <= inner.shape[2] or outer.shape[3] <= inner.shape[3]:
            raise ValueError(
                f"Level {index} of `{name}` is {tuple(outer.shape[2:])}, not larger than level {index - 1} with "
                f"{tuple(inner.shape[2:])}; a pyramid is given innermost (smallest) first."
            )


def level_ratios(pyramid: Sequence[torch.Tensor]) -> list[float]:
    """Side ratio r_i / r_0 of every level to the innermost one, e.g. `[1.0, 4.0, 16.0]`."""
    return [level.shape[-2] / pyramid[0].shape[-2] for level in pyramid]


def build_pyramid(images: torch.Tensor, sides: Sequence[int]) -> Pyramid:
    """Average `images` down to every level (D^i of the paper, section 3.1), one pooling after the other.

    Args:
        images: `(B, C, H, W)`, clean pictures in [-1, 1].
        sides: heights of the levels, innermost first; the last one is H, and each divides the next.

    Returns:
        Levels `(B, C, sides[i], W * sides[i] / H)`, innermost first; the last one is `images` itself.

    Raises:
        ValueError: the sides do not end at H, or do not divide one another and W.
    """
    if images.ndim != 4:
        raise ValueError(f"`images` has shape {tuple(images.shape)}; expected (batch, channels, height, width).")
    if not sides or sides[-1] != images.shape[-2]:
        raise ValueError(
            f"The outermost side must be the height of the images, {images.shape[-2]}; got sides {list(sides)} "
            "(innermost first). Resize the images first."
        )
    levels = [images]
    for outer, inner in zip(reversed(sides), list(reversed(sides))[1:], strict=False):
        factor, remainder = divmod(outer, inner)
        if remainder or factor < 2 or levels[0].shape[-1] % factor:
            raise ValueError(
                f"A level of {tuple(levels[0].shape[-2:])} cannot be averaged down to height {inner}: the ratio of "
                f"neighbouring sides in {list(sides)} must be a whole number above 1 that also divides the width."
            )
        levels.insert(0, F.avg_pool2d(levels[0], factor))
    return levels


def pyramid_noise(
    shapes: Sequence[Sequence[int]],
    generator: torch.Generator | list[torch.Generator] | None = None,
    device: torch.device | str | None = None,
    dtype: torch.dtype | None = None,
) -> Pyramid:
    """Draw independent N(0, 1) noise for every level, the innermost first.

    Args:
        shapes: `(B_i, C, H_i, W_i)` of every level, innermost first.
        generator: one generator, or one for each row of level 0. With a list, a row's noise depends on its own
            generator alone, so a picture does not change with the batch it is drawn in.
        device: where the noise goes; it is drawn where the generator is.
        dtype: of the noise.

    Raises:
        ValueError: the list of generators does not have one entry for each row of level 0.
    """
    device = torch.device(device) if device is not None else None
    if isinstance(generator, (list, tuple)):
        if len(generator) != shapes[0][0]:
            raise ValueError(
                f"Got a list of {len(generator)} generators for a batch of {shapes[0][0]}; pass one generator a row, "
                "or a single one."
            )
        return [
            randn_tensor(tuple(shape), generator=list(generator[: shape[0]]), device=device, dtype=dtype)
            for shape in shapes
        ]
    return [randn_tensor(tuple(shape), generator=generator, device=device, dtype=dtype) for shape in shapes]
