# SPDX-License-Identifier: Apache-2.0
"""Image pyramids: the same batch of images or clips at several resolutions, innermost (smallest) first.

A pyramid is a `list[Tensor]`; element i has shape `(B_i, C, H_i, W_i)` and holds D^i(x), the images averaged down to
level i, in [-1, 1] when clean. For video the shape is `(B_i, C, F_i, H_i, W_i)`, and a level has more frames than the
level inside it, more pixels, or both. Outer levels may have smaller batches (B_0 >= B_1 >= ...): the samples of level
i are the first B_i samples of level i - 1.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from diffusers.utils.torch_utils import randn_tensor

from .checked_values import describe

Pyramid = list[torch.Tensor]
Size = tuple[int, int]  # height, width


def as_pyramid(sample: torch.Tensor | Sequence[torch.Tensor]) -> tuple[Pyramid, bool]:
    """Return `sample` as a list of levels, and whether it was a bare tensor (a pyramid of one level).

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
    """Check that a pyramid is valid.

    It needs at least one level, the right number of dimensions, equal channels at all levels, and no level with a
    larger batch or a smaller image than the level inside it.

    Args:
        pyramid: levels, all `(B_i, C, H_i, W_i)` or all `(B_i, C, F_i, H_i, W_i)`, innermost first.
        name: name of the pyramid in error messages.
    """
    if len(pyramid) == 0:
        raise ValueError(f"`{name}` is an empty pyramid; pass at least the innermost level.")
    for index, level in enumerate(pyramid):
        if level.ndim not in (4, 5):
            raise ValueError(
                f"Level {index} of `{name}` has shape {tuple(level.shape)}; expected (batch, channels, height, "
                "width), or (batch, channels, frames, height, width) for video."
            )
        if level.ndim != pyramid[0].ndim:
            raise ValueError(
                f"Level {index} of `{name}` has {level.ndim} dimensions but level 0 has {pyramid[0].ndim}; in a "
                "pyramid of clips a level of one frame is (batch, channels, 1, height, width)."
            )
    for index in range(1, len(pyramid)):
        inner, outer = pyramid[index - 1], pyramid[index]
        if inner.shape[1] != outer.shape[1]:
            raise ValueError(
                f"Levels {index - 1} and {index} of `{name}` have {inner.shape[1]} and {outer.shape[1]} channels; "
                "all levels of a pyramid need the same number of channels."
            )
        if outer.shape[0] > inner.shape[0]:
            raise ValueError(
                f"Level {index} of `{name}` has a batch of {outer.shape[0]} but level {index - 1} one of "
                f"{inner.shape[0]}; outer levels cannot have larger batches. Is the pyramid given innermost "
                f"(smallest) first?"
            )
        if not _is_larger(outer.shape[2:], inner.shape[2:]):
            raise ValueError(
                f"Level {index} of `{name}` is {tuple(outer.shape[2:])}, not larger than level {index - 1} with "
                f"{tuple(inner.shape[2:])}; a pyramid is given innermost (smallest) first."
            )


def check_tensor(value: Any, name: str, expected: str, is_floating: bool | None = None) -> None:
    """Refuse what is no tensor, or one of another kind of numbers.

    Args:
        value: to check.
        name: what the message calls it.
        expected: what it should be, e.g. "a tensor (batch, tokens, channels)".
        is_floating: True for floating-point numbers only, False for whole numbers only, None for both.

    Raises:
        TypeError: names the type and what was expected.
    """
    if not isinstance(value, torch.Tensor):
        raise TypeError(f"`{name}` is {describe(value)} ({type(value).__name__}); expected {expected}.")
    whole = not (value.is_floating_point() or value.is_complex() or value.dtype == torch.bool)
    fits = is_floating is None or (value.is_floating_point() if is_floating else whole)
    if not fits:
        kind = "floating-point numbers" if is_floating else "whole numbers"
        raise TypeError(f"`{name}` holds {value.dtype}; expected {expected} of {kind}.")


def matching_levels(
    tensors: torch.Tensor | Sequence[torch.Tensor], levels: Sequence[torch.Tensor], name: str
) -> Pyramid:
    """Return `tensors` as a list, checked to have the same shapes and devices as `levels`.

    Raises:
        ValueError: the number of levels, a shape or a device differs.
    """
    others, _ = as_pyramid(tensors)
    shapes, expected = [tuple(level.shape) for level in others], [tuple(level.shape) for level in levels]
    if shapes != expected:
        raise ValueError(
            f"`{name}` has levels of the shapes {shapes}, innermost first; the sample has {expected}. Both must agree."
        )
    places, expected_places = [str(level.device) for level in others], [str(level.device) for level in levels]
    if places != expected_places:
        raise ValueError(
            f"`{name}` is on {', '.join(places)}; the sample is on {', '.join(expected_places)}. Move it there."
        )
    return others


def check_finite(levels: Sequence[torch.Tensor], timestep: int, name: str) -> None:
    """Check that all levels are free of NaN and infinity.

    Raises:
        ValueError: names the timestep and the levels (0 = innermost).
    """
    # One result for all levels, so that each step waits for the accelerator only once.
    finite = torch.stack([torch.isfinite(level).all() for level in levels]).tolist()
    if not all(finite):
        broken = ", ".join(str(index) for index, good in enumerate(finite) if not good)
        raise ValueError(
            f"`{name}` holds NaN or infinity at timestep {timestep}, level {broken} (0 = innermost). Try float32 or "
            "bfloat16 if the network runs in float16; otherwise look at its weights and inputs."
        )


def in_full_precision(tensor: torch.Tensor) -> torch.Tensor:
    """Return the tensor, converted to float32 if it is in half precision."""
    return tensor.float() if tensor.dtype in (torch.float16, torch.bfloat16) else tensor


def _is_larger(outer: Sequence[int], inner: Sequence[int]) -> bool:
    """Return whether a level has larger sides, or more frames and no smaller sides, than the level inside it."""
    more_pixels = outer[-2] > inner[-2] and outer[-1] > inner[-1]
    if len(outer) == 2:
        return more_pixels
    no_less = all(more >= less for more, less in zip(outer, inner, strict=True))
    return no_less and (more_pixels or outer[0] > inner[0])


def level_ratios(pyramid: Sequence[torch.Tensor]) -> list[float]:
    """Return the ratio r_i / r_0 of every level to the innermost one, e.g. `[1.0, 4.0, 16.0]`.

    For images it is the ratio of the sides. For clips it is multiplied by the square root of the ratio of the numbers
    of frames: the published video models tile the frames into a square, and r is its side (ml-mdm, Video).
    """
    if pyramid[0].ndim == 5:
        inner = pyramid[0].shape
        return [math.sqrt(level.shape[2] / inner[2]) * level.shape[-2] / inner[-2] for level in pyramid]
    return [level.shape[-2] / pyramid[0].shape[-2] for level in pyramid]


def level_of_size(height: int, width: int, sides: Sequence[int], buckets: Sequence[Size] = ()) -> int | None:
    """Return the level whose images can have a size: its side is the larger one of the two, or it is a bucket.

    Args:
        height: pixels.
        width: pixels.
        sides: side of every level, innermost first.
        buckets: further sizes (height, width) of the outermost level, which has them at all levels in proportion.

    Returns:
        The index of the level; None if there is none.
    """
    if max(height, width) in sides:
        return list(sides).index(max(height, width))
    for index, side in enumerate(sides):
        if any((height * sides[-1], width * sides[-1]) == (high * side, wide * side) for high, wide in buckets):
            return index
    return None


def build_pyramid(images: torch.Tensor, sides: Sequence[int], num_frames: Sequence[int] | None = None) -> Pyramid:
    """Downsample `images` to every level (D^i of the paper, section 3.1), from the outermost level inwards.

    Pixels are averaged. Of the frames every k-th is kept, beginning with the first (ml-mdm, Schedule / diffusion).

    Args:
        images: `(B, C, H, W)`, or `(B, C, F, H, W)` for clips, clean, in [-1, 1].
        sides: heights of the levels, innermost first; the last one must be H, and each must divide the next.
        num_frames: for clips, numbers of frames of the levels, innermost first; the last one must be F, and each must
            divide the next. None means F frames at every level.

    Returns:
        Levels `(B, C, sides[i], W * sides[i] / H)`, for clips `(B, C, num_frames[i], …)`, innermost
        first. The last one is `images` itself.

    Raises:
        ValueError: the last side is not H, or the sides do not divide each other and W; the same for the frames; or
            two neighbouring levels have equal sizes.
    """
    if images.ndim not in (4, 5):
        raise ValueError(
            f"`images` has shape {tuple(images.shape)}; expected (batch, channels, height, width), or (batch, "
            "channels, frames, height, width) for clips."
        )
    if not sides or sides[-1] != images.shape[-2]:
        raise ValueError(
            f"The last side must be the height of the images, {images.shape[-2]}; got sides {list(sides)} "
            f"(innermost first). Resize the images first."
        )
    frames = _checked_frames(images, len(sides), num_frames)
    levels = [images]
    for index in reversed(range(len(sides) - 1)):
        skipped = frames[index + 1] // frames[index]
        factor, remainder = divmod(sides[index + 1], sides[index])
        if remainder or factor * skipped < 2 or levels[0].shape[-1] % factor:
            raise ValueError(
                f"A level of {tuple(levels[0].shape[-2:])} cannot be averaged down to height {sides[index]}: the "
                f"ratio of neighbouring sides in {list(sides)} must be a whole number above 1 (or 1 where frames "
                "differ) that also divides the width."
            )
        levels.insert(0, _step_inwards(levels[0], factor, skipped))
    return levels


def _step_inwards(level: torch.Tensor, factor: int, skipped: int) -> torch.Tensor:
    """Return every `skipped`-th frame, averaged over squares of side `factor`."""
    if level.ndim == 4:
        return F.avg_pool2d(level, factor)
    level = level[:, :, ::skipped]
    return F.avg_pool3d(level, (1, factor, factor)) if factor > 1 else level


def _checked_frames(images: torch.Tensor, num_levels: int, num_frames: Sequence[int] | None) -> list[int]:
    """Return the number of frames of every level; 1 for images."""
    if images.ndim == 4:
        if num_frames is not None and any(count != 1 for count in num_frames):
            raise ValueError(
                f"`num_frames` is {list(num_frames)}, but `images` has shape {tuple(images.shape)}; clips are (batch, "
                "channels, frames, height, width)."
            )
        return [1] * num_levels
    frames = [images.shape[2]] * num_levels if num_frames is None else list(num_frames)
    divisible = all(inner > 0 and outer % inner == 0 for inner, outer in itertools.pairwise(frames))
    if len(frames) != num_levels or frames[-1] != images.shape[2] or not divisible:
        raise ValueError(
            f"Clips of {images.shape[2]} frames do not fit `num_frames` = {frames}: expected {num_levels} numbers, "
            f"innermost first, each dividing the next, ending with {images.shape[2]}. Cut the clips to this length "
            f"first."
        )
    return frames


def pyramid_noise(
    shapes: Sequence[Sequence[int]],
    generator: torch.Generator | list[torch.Generator] | None = None,
    device: torch.device | str | None = None,
    dtype: torch.dtype | None = None,
) -> Pyramid:
    """Sample independent N(0, 1) noise for every level, innermost first.

    Args:
        shapes: of every level, `(B_i, C, H_i, W_i)` or `(B_i, C, F_i, H_i, W_i)`, innermost first.
        generator: one generator, or a list with one per sample of level 0. With a list, the noise of a sample depends
            on its own generator only, so an image does not depend on the batch it is generated in.
        device: device of the result; the noise is sampled on the generator's device.
        dtype: dtype of the result.

    Raises:
        ValueError: the list of generators does not have one entry per sample of level 0.
    """
    device = torch.device(device) if device is not None else None
    given = generator if isinstance(generator, (list, tuple)) else [generator]
    if generator is not None and not all(isinstance(entry, torch.Generator) for entry in given):
        raise ValueError(
            f"`generator` is of type {', '.join(sorted({type(entry).__name__ for entry in given}))}; expected a "
            "torch.Generator or a list of them."
        )
    if isinstance(generator, (list, tuple)):
        if len(generator) != shapes[0][0]:
            raise ValueError(
                f"Got a list of {len(generator)} generators for a batch of {shapes[0][0]}; pass one for each "
                f"sample, or a single one."
            )
        return [
            randn_tensor(tuple(shape), generator=list(generator[: shape[0]]), device=device, dtype=dtype)
            for shape in shapes
        ]
    return [randn_tensor(tuple(shape), generator=generator, device=device, dtype=dtype) for shape in shapes]
