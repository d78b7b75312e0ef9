# SPDX-License-Identifier: Apache-2.0
"""Averages of blocks of pixels: averaging down, enlarging, and projecting an image onto given averages.

A block is the square of f x f pixels of an image that is averaged to one pixel of the smaller image. Of a clip with k
times as many frames as the smaller one, only every k-th frame has given averages.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F

from ..pyramid import build_pyramid


def project_onto_average(image: torch.Tensor, average: torch.Tensor) -> torch.Tensor:
    """Return the image in [-1, 1] with the given block averages that is nearest to `image` clipped to [-1, 1].

    All pixels of a block are moved by the same amount, except those that reach the end of the range: they stop there,
    and the others are moved further (projection onto the intersection of a hyperplane and a box). Such an image always
    exists, since the averages are themselves in [-1, 1].

    Args:
        image: `(B, C, H, W)`, or with frames `(B, C, F, H, W)`.
        average: `(B, C, h, w)` in [-1, 1], h dividing H and w dividing W by the same factor; or `(B, C, f, h, w)`, f
            dividing F, for the averages of every (F / f)-th frame, beginning with the first.

    Returns:
        The shape of `image`. Its averages differ from `average` only by rounding, at most 1e-6 in float32.
    """
    if image.ndim == 5 and image.shape[2] > average.shape[2]:
        projected = image.clamp(-1, 1)
        given = slice(None, None, image.shape[2] // average.shape[2])
        projected[:, :, given] = project_onto_average(image[:, :, given], average)
        return projected
    blocks = blocks_of(image, average).clamp(-1, 1)
    missing = average[..., None].to(blocks.dtype) - blocks.mean(dim=-1, keepdim=True)
    # Where pixels have to be lowered, those of the negated block have to be raised.
    sign = torch.where(missing < 0, -1.0, 1.0).to(blocks.dtype)
    room = 1 - sign * blocks
    return image_of(blocks + sign * _fill_evenly(room, missing.abs() * blocks.shape[-1]), image)


def _fill_evenly(room: torch.Tensor, amount: torch.Tensor) -> torch.Tensor:
    """Distribute `amount` equally over entries with capacities `room`, filling entries that reach their capacity.

    Args:
        room: `(..., n)`, at least 0.
        amount: `(..., 1)`, at least 0, at most the sum of `room`.
    """
    num_vessels = room.shape[-1]
    ascending = room.sort(dim=-1).values
    # If the k smallest entries are full, this is the amount in each of the others.
    full = ascending.cumsum(dim=-1) - ascending
    still_open = torch.arange(num_vessels, 0, -1, device=room.device, dtype=room.dtype)
    heights = (amount - full) / still_open
    # The right k is the first for which the next entry is not overfilled; if rounding leaves none, all are full.
    fits = heights <= ascending
    first = torch.where(fits.any(dim=-1), fits.to(torch.int64).argmax(dim=-1), num_vessels - 1)[..., None]
    return torch.minimum(room, heights.gather(-1, first).clamp(min=0))


def blocks_of(image: torch.Tensor, average: torch.Tensor) -> torch.Tensor:
    """Return the pixels of an image by block, `(B, C, h, w, f * f)`; frames are kept as they are."""
    factor = image.shape[-1] // average.shape[-1]
    return image.unflatten(-1, (-1, factor)).unflatten(-3, (-1, factor)).transpose(-3, -2).flatten(-2)


def image_of(blocks: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
    """Return the image with the shape of `like` for pixels by block: the inverse of `blocks_of`."""
    factor = like.shape[-1] // blocks.shape[-2]
    return blocks.unflatten(-1, (factor, factor)).transpose(-3, -2).reshape(like.shape)


def with_given_average(level: torch.Tensor, average: torch.Tensor) -> torch.Tensor:
    """Return a level of a pyramid in which an image or clip is given.

    Args:
        level: `(B, C, H, W)` or `(B, C, F, H, W)`, about in [-1, 1].
        average: the given image or clip in [-1, 1].

    Returns:
        A level larger than the given image, projected (see `project_onto_average`); otherwise the given image,
        averaged down.
    """
    if level[0].numel() > average[0].numel():
        return project_onto_average(level, average)
    given = average.to(level)
    return given if given.shape == level.shape else average_down(given, level)


def average_down(outer: torch.Tensor, inner: torch.Tensor) -> torch.Tensor:
    """Average the outer level down to the size of the inner level; of clips, every k-th frame is taken."""
    frames = [inner.shape[2], outer.shape[2]] if outer.ndim == 5 else None
    return build_pyramid(outer, [inner.shape[-2], outer.shape[-2]], frames)[0]


def enlarge(difference: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
    """Enlarge an image or clip smoothly, such that averaging down gives it back exactly.

    After bilinear enlargement alone, averaging down would lose up to three quarters of the variation from pixel to
    pixel; the loss is added evenly to each block. Frames of a clip are interpolated linearly; after the last one there
    is no further change.

    Args:
        difference: `(B, C, h, w)`, or `(B, C, f, h, w)`.
        like: `(B, C, H, W)`, or `(B, C, F, H, W)`, with the size to enlarge to.

    Returns:
        A tensor with the shape of `like`, which `average_down` maps back to `difference`.
    """
    if like.ndim == 4:
        smooth = F.interpolate(difference, like.shape[-2:], mode="bilinear", align_corners=False)
        lost = difference - average_down(smooth, difference)
        return smooth + F.interpolate(lost, like.shape[-2:], mode="nearest")
    frames = difference.transpose(1, 2).flatten(0, 1)
    if difference.shape[-1] < like.shape[-1]:
        frames = enlarge(frames, like[:, :, 0].repeat_interleave(difference.shape[2], dim=0))
    known = frames.unflatten(0, (len(difference), -1)).transpose(1, 2)
    places = torch.arange(like.shape[2], device=like.device)
    skipped = like.shape[2] // difference.shape[2]
    before = places // skipped
    after = (before + 1).clamp(max=difference.shape[2] - 1)
    share = ((places % skipped) / skipped).to(known.dtype)[:, None, None]
    return torch.lerp(known[:, :, before], known[:, :, after], share)
