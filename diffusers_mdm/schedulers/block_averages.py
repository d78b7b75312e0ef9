# SPDX-License-Identifier: Apache-2.0
"""A level and the averages of its blocks: averaging down, enlarging, and pictures in a range whose averages are given.

A block is the square of f x f pixels of a picture that averages to one pixel of the smaller picture.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F

from ..pyramid import build_pyramid


def project_onto_average(picture: torch.Tensor, average: torch.Tensor) -> torch.Tensor:
    """The picture in [-1, 1] with the given averages that is nearest to `picture` cut to [-1, 1].

    Within a block all pixels move by the same amount, except those that reach the end of the range: they stay there,
    and the others move further (projection onto the meet of a hyperplane and a box). There always is such a picture,
    since the averages are in [-1, 1] themselves.

    Args:
        picture: `(B, C, H, W)`, or with frames `(B, C, F, H, W)`.
        average: `(B, C, h, w)` in [-1, 1], h dividing H and w dividing W by the same factor.

    Returns:
        The shape of `picture`. Its averages differ from `average` by rounding only, at most 1e-6 in float32.
    """
    blocks = blocks_of(picture, average).clamp(-1, 1)
    missing = average[..., None].to(blocks.dtype) - blocks.mean(dim=-1, keepdim=True)
    # Where pixels have to go down, the mirrored block has to go up.
    sign = torch.where(missing < 0, -1.0, 1.0).to(blocks.dtype)
    room = 1 - sign * blocks
    return picture_of(blocks + sign * _fill_evenly(room, missing.abs() * blocks.shape[-1]), picture)


def _fill_evenly(room: torch.Tensor, amount: torch.Tensor) -> torch.Tensor:
    """Pour `amount` into vessels of the sizes `room` so that all are filled equally high, or to the brim.

    Args:
        room: `(..., n)`, at least 0.
        amount: `(..., 1)`, at least 0, at most the sum of `room`.
    """
    num_vessels = room.shape[-1]
    ascending = room.sort(dim=-1).values
    # With the k smallest vessels full, the others stand at this height.
    full = ascending.cumsum(dim=-1) - ascending
    still_open = torch.arange(num_vessels, 0, -1, device=room.device, dtype=room.dtype)
    heights = (amount - full) / still_open
    # The right k is the first whose next vessel is not overfilled; rounding may leave none, then all are full.
    fits = heights <= ascending
    first = torch.where(fits.any(dim=-1), fits.to(torch.int64).argmax(dim=-1), num_vessels - 1)[..., None]
    return torch.minimum(room, heights.gather(-1, first).clamp(min=0))


def blocks_of(picture: torch.Tensor, average: torch.Tensor) -> torch.Tensor:
    """Pixels block by block, `(B, C, h, w, f * f)`, of a picture and the smaller one; with frames as they are."""
    factor = picture.shape[-1] // average.shape[-1]
    return picture.unflatten(-1, (-1, factor)).unflatten(-3, (-1, factor)).transpose(-3, -2).flatten(-2)


def picture_of(blocks: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
    """The inverse of `blocks_of`, in the shape of the picture `like`."""
    factor = like.shape[-1] // blocks.shape[-2]
    return blocks.unflatten(-1, (factor, factor)).transpose(-3, -2).reshape(like.shape)


def average_down(outer: torch.Tensor, inner: torch.Tensor) -> torch.Tensor:
    """The outer level as the level inside it shows it: averages of pixels, of clips those of every k-th frame."""
    frames = [inner.shape[2], outer.shape[2]] if outer.ndim == 5 else None
    return build_pyramid(outer, [inner.shape[-2], outer.shape[-2]], frames)[0]


def enlarge(difference: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
    """Enlarge a picture or clip so smoothly as its averages, which are kept, allow.

    Bilinear enlarging alone would lose up to three quarters of what changes from pixel to pixel when it is averaged
    down again; what it has lost is added evenly to each block. Between the frames of a clip it goes linearly; after
    the last one it stays.

    Args:
        difference: `(B, C, h, w)`, or `(B, C, f, h, w)`.
        like: `(B, C, H, W)`, or `(B, C, F, H, W)`: of the size to enlarge to.

    Returns:
        The shape of `like`; `average_down` gives `difference` back.
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
