# SPDX-License-Identifier: Apache-2.0
"""Input images of a drawing: fitting them to the model's sizes, and the known pixels at every level."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

from diffusers_mdm.pipelines.drawing.image_inputs import (
    Images,
    fitting_size,
    has_shape_of,
    read_images,
    read_masks,
)
from diffusers_mdm.pipelines.drawing.known_pixels import KnownPixels, pool_mask
from diffusers_mdm.pipelines.drawing.latent_space import decode_latents, encode_pyramid
from diffusers_mdm.pipelines.drawing.request import Request, Sample
from diffusers_mdm.pipelines.drawing.setup import Drawing, noised, pixels_per_latent
from diffusers_mdm.pyramid import Pyramid, build_pyramid


def read_given_images(pipeline: Any, request: Request, sides: Sequence[int], resize_to: int | None = None) -> None:
    """Read the images of a call at a size that the model supports.

    Images that have the size of a level keep it. Others are resized to the largest level, with the aspect ratio kept
    as closely as the model's sizes allow. Latents are not resized.

    Args:
        pipeline: the pipeline, whose model and autoencoder determine the sizes.
        request: receives the images.
        sides: sides in pixels of the levels that can take images, level 0 first.
        resize_to: side of the level for images of other sizes; the largest by default.

    Raises:
        ValueError: see `read_images`; or latents have the size of none of these levels.
    """
    vae, multiples = pipeline.vae, pipeline.image_multiples[: len(sides)]
    outermost, buckets = pipeline.image_sides[-1], pipeline.aspect_ratio_buckets
    sizes = {side: [(high * side // outermost, wide * side // outermost) for high, wide in buckets] for side in sides}
    fit = functools.partial(fitting_size, sides=sides, multiples=multiples, resize_to=resize_to, sizes=sizes)
    latent_channels = None if vae is None else pipeline.unet.config.in_channels
    request.images = read_images(
        request.image, pipeline.num_image_channels, fit=fit, num_latent_channels=latent_channels
    )
    height, width = image_size(request.images, pipeline.vae_scale_factor)
    if fit(height, width) != (height, width):
        raise ValueError(
            f"`image` has latents of images of {height} x {width} pixels (height x width), which no level takes: "
            f"the larger side has to be one of {', '.join(map(str, sides))}, or the size a bucket of the model. "
            "Encode images of such a size."
        )


def read_masks_of(request: Request) -> None:
    """Read the masks of a call at the size of its images.

    Args:
        request: has the images, and receives the masks.
    """
    images = request.images
    target = (request.height, request.width)

    def fit(height: int, width: int) -> tuple[int, int]:
        if not has_shape_of(height, width, (target, *images.given_sizes)):
            given = images.given_sizes[0] if images.given_sizes else target
            raise ValueError(
                f"`mask_image` is {height} x {width} pixels (height x width), but `image` is {given[0]} x {given[1]}; "
                "pass a mask with the size of the images."
            )
        return target

    request.masks = read_masks(request.mask_image, fit=fit)


def image_size(images: Images, pixels_per_latent: int) -> tuple[int, int]:
    """Return height and width in pixels of input images, or of the images that input latents represent."""
    factor = 1 if images.latents is None else pixels_per_latent
    height, width = images.tensor.shape[-2:]
    return height * factor, width * factor


def know_images(drawing: Drawing, noise: Pyramid) -> KnownPixels:
    """Return the whole input images as known pixels, at their own level and, averaged down, at all levels inside it.

    Args:
        drawing: the drawing whose request has the images; each is repeated for its share of the batch.
        noise: N(0, 1) noise `(B, C, H_i, W_i)` of every generated level.
    """
    vae, images = drawing.pipeline.vae, drawing.request.images
    factor = pixels_per_latent(vae)
    given = images.tensor.to(drawing.device, drawing.dtype)
    given = given.repeat_interleave(len(noise[0]) // len(given), dim=0)
    height = image_size(images, factor)[0]
    sides = [level.shape[-2] * factor for level in noise if level.shape[-2] * factor <= height]
    if images.latents is None:
        pixels = build_pyramid(given, sides)
        return KnownPixels.whole(pixels, encode_pyramid(vae, pixels), noise)
    clean = build_pyramid(given, [side // factor for side in sides])
    pixels = build_pyramid((decode_latents(vae, given) / 2 + 0.5).clamp(0, 1), sides)
    return KnownPixels.whole(pixels, clean, noise)


def know_around(drawing: Drawing, noise: Pyramid) -> KnownPixels:
    """Return the pixels outside the masks as known at every level; arguments as in `know_images`."""
    known, masks = know_images(drawing, noise), drawing.request.masks
    repeated = masks.to(noise[0].device).repeat_interleave(len(noise[0]) // len(masks), dim=0)
    known.drawn, known.drawn_pixels = pool_mask(repeated, known.clean), pool_mask(repeated, known.pixels)
    return known


def noised_sample(drawing: Drawing, clean: Pyramid, noise: Pyramid) -> Sample:
    """Add the noise of the first timestep to images; returns a bare tensor for a single level.

    Args:
        drawing: the drawing, whose scheduler adds the noise.
        clean: all generated levels, in [-1, 1] or of latents.
        noise: N(0, 1) noise in the same shapes.
    """
    bare = len(clean) == 1
    levels = noised(drawing, clean, noise, drawing.timesteps[0], bare=bare)
    return levels[0] if bare else levels
