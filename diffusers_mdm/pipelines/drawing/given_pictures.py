# SPDX-License-Identifier: Apache-2.0
"""Pictures that a drawing starts from: whether they fit the model, and what is known of them at every level."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

from diffusers_mdm.pipelines.drawing.image_inputs import (
    Pictures,
    fitting_size,
    has_shape_of,
    read_images,
    read_masks,
)
from diffusers_mdm.pipelines.drawing.known_pixels import KnownPixels, pool_mask
from diffusers_mdm.pipelines.drawing.latent_space import decode_latents, encode_pyramid
from diffusers_mdm.pipelines.drawing.request import Request
from diffusers_mdm.pipelines.drawing.setup import Drawing, pixels_per_latent
from diffusers_mdm.pyramid import Pyramid, build_pyramid


def read_pictures(pipeline: Any, request: Request, sides: Sequence[int], resize_to: int | None = None) -> None:
    """Read the pictures of a call at a size that the model draws.

    Pictures that already have the size of a level keep it. Others are resized to the largest level, the aspect ratio
    kept as nearly as the model's sizes allow. Latents are not resized.

    Args:
        pipeline: its model and autoencoder say which sizes there are.
        request: takes the pictures.
        sides: side in pixels of the levels that take pictures, level 0 first.
        resize_to: the one that takes pictures of other sizes; the largest by default.

    Raises:
        ValueError: see `read_images`; or latents have the size of none of these levels.
    """
    vae, multiples = pipeline.vae, pipeline.picture_multiples[: len(sides)]
    fit = functools.partial(fitting_size, sides=sides, multiples=multiples, resize_to=resize_to)
    latent_channels = None if vae is None else pipeline.unet.config.in_channels
    request.pictures = read_images(
        request.image, pipeline.num_picture_channels, fit=fit, num_latent_channels=latent_channels
    )
    height, width = picture_size(request.pictures, pipeline.vae_scale_factor)
    if fit(height, width) != (height, width):
        raise ValueError(
            f"`image` has latents of pictures of {height} x {width} pixels (height x width), which no level takes: "
            f"the larger side has to be one of {', '.join(map(str, sides))}. Encode pictures of such a size."
        )


def read_masks_of(request: Request) -> None:
    """Read the masks of a call at the size of its pictures.

    Args:
        request: has the pictures, and takes the masks.
    """
    pictures = request.pictures
    target = (request.height, request.width)

    def fit(height: int, width: int) -> tuple[int, int]:
        if not has_shape_of(height, width, (target, *pictures.given_sizes)):
            given = pictures.given_sizes[0] if pictures.given_sizes else target
            raise ValueError(
                f"`mask_image` is {height} x {width} pixels (height x width), but `image` is {given[0]} x {given[1]}; "
                "pass a mask of the size of the pictures."
            )
        return target

    request.masks = read_masks(request.mask_image, fit=fit)


def picture_size(pictures: Pictures, pixels_per_latent: int) -> tuple[int, int]:
    """Height and width in pixels of pictures that were handed in, or of those that latents stand for."""
    factor = 1 if pictures.latents is None else pixels_per_latent
    height, width = pictures.tensor.shape[-2:]
    return height * factor, width * factor


def know_pictures(drawing: Drawing, noise: Pyramid) -> KnownPixels:
    """Give the whole pictures as known, at their own level and, averaged, at all levels inside it.

    Args:
        drawing: whose request has the pictures; each is repeated for its share of the batch.
        noise: N(0, 1) `(B, C, H_i, W_i)` of every level that is drawn.
    """
    vae, pictures = drawing.pipeline.vae, drawing.request.pictures
    factor = pixels_per_latent(vae)
    given = pictures.tensor.to(drawing.device, drawing.dtype)
    given = given.repeat_interleave(len(noise[0]) // len(given), dim=0)
    height = picture_size(pictures, factor)[0]
    sides = [level.shape[-2] * factor for level in noise if level.shape[-2] * factor <= height]
    if pictures.latents is None:
        pixels = build_pyramid(given, sides)
        return KnownPixels.whole(pixels, encode_pyramid(vae, pixels), noise)
    clean = build_pyramid(given, [side // factor for side in sides])
    pixels = build_pyramid((decode_latents(vae, given) / 2 + 0.5).clamp(0, 1), sides)
    return KnownPixels.whole(pixels, clean, noise)


def know_around(drawing: Drawing, noise: Pyramid) -> KnownPixels:
    """Give what lies outside the masks as known at every level; arguments as in `know_pictures`."""
    known, masks = know_pictures(drawing, noise), drawing.request.masks
    repeated = masks.to(noise[0].device).repeat_interleave(len(noise[0]) // len(masks), dim=0)
    known.drawn, known.drawn_pixels = pool_mask(repeated, known.clean), pool_mask(repeated, known.pixels)
    return known
