# SPDX-License-Identifier: Apache-2.0
"""Pictures that a drawing starts from: whether they fit the model, and what is known of them at every level."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from diffusers_mdm.pipelines.drawing.known_pixels import KnownPixels, pool_mask
from diffusers_mdm.pipelines.drawing.latent_space import encode_pyramid
from diffusers_mdm.pipelines.drawing.setup import Drawing, pixels_per_latent
from diffusers_mdm.pyramid import Pyramid, build_pyramid


def check_picture_size(name: str, height: int, width: int, sides: Sequence[int], multiples: Sequence[int]) -> None:
    """Refuse given pictures whose size no level has.

    Args:
        name: what the error message calls the pictures.
        height: pixels.
        width: pixels.
        sides: side of every level, innermost first.
        multiples: for every level, what height and width must be multiples of.
    """
    if max(height, width) not in sides:
        raise ValueError(
            f"`{name}` is {height} x {width} pixels (height x width), the size of no level: the larger side has to be "
            f"one of {', '.join(map(str, sides))}, the sizes of this model's levels, innermost first. Resize it first."
        )
    multiple = multiples[list(sides).index(max(height, width))]
    if height % multiple or width % multiple:
        raise ValueError(
            f"`{name}` is {height} x {width} pixels (height x width); both have to be multiples of {multiple} for "
            f"pictures whose larger side is {max(height, width)}. Crop or resize it first."
        )


def check_mask_size(masks: torch.Tensor, height: int, width: int) -> None:
    """Refuse masks `(B, 1, H, W)` of another size than the pictures."""
    if masks.shape[-2:] != (height, width):
        got_height, got_width = masks.shape[-2:]
        raise ValueError(
            f"`mask_image` is {got_height} x {got_width} pixels (height x width), but `image` is {height} x {width}; "
            "pass a mask of the size of the pictures."
        )


def know_pictures(drawing: Drawing, noise: Pyramid) -> KnownPixels:
    """Give the whole pictures as known, at their own level and, averaged, at all levels inside it.

    Args:
        drawing: whose request has the pictures; each is repeated for its share of the batch.
        noise: N(0, 1) `(B, C, H_i, W_i)` of every level that is drawn.
    """
    vae, pictures = drawing.pipeline.vae, drawing.request.pictures
    factor = pixels_per_latent(vae)
    pixels = pictures.pixels.to(drawing.device, drawing.dtype)
    pixels = pixels.repeat_interleave(len(noise[0]) // len(pixels), dim=0)
    sides = [level.shape[-2] * factor for level in noise if level.shape[-2] * factor <= pixels.shape[-2]]
    pyramid = build_pyramid(pixels, sides)
    return KnownPixels.whole(pyramid, encode_pyramid(vae, pyramid), noise)


def know_around(drawing: Drawing, noise: Pyramid) -> KnownPixels:
    """Give what lies outside the masks as known at every level; arguments as in `know_pictures`."""
    known, masks = know_pictures(drawing, noise), drawing.request.masks
    repeated = masks.to(noise[0].device).repeat_interleave(len(noise[0]) // len(masks), dim=0)
    known.drawn, known.drawn_pixels = pool_mask(repeated, known.clean), pool_mask(repeated, known.pixels)
    return known
