# SPDX-License-Identifier: Apache-2.0
"""Pyramids of latents: the model denoises an autoencoder's latents, averaged down level by level.

Latents are scaled to unit variance according to the autoencoder's config, `(z - shift_factor) * scaling_factor`, or
per channel with `latents_mean` and `latents_std`. Without an autoencoder the model denoises the images themselves,
which the functions of this module then return unchanged.

Supported are diffusers' autoencoders for single images. Video autoencoders compress frames together, and some others
need more than latents to decode (a number of frames, random numbers); they are refused.
"""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from typing import Any, TypeAlias, get_args

import torch
from diffusers import (
    AsymmetricAutoencoderKL,
    AutoencoderDC,
    AutoencoderKL,
    AutoencoderTiny,
    VQModel,
)
from diffusers.utils.torch_utils import randn_tensor

from diffusers_mdm.pyramid import Pyramid, build_pyramid

Autoencoder: TypeAlias = AutoencoderKL | AutoencoderTiny | AutoencoderDC | VQModel | AsymmetricAutoencoderKL
AUTOENCODERS = get_args(Autoencoder)
# The entries of their configs with the channels of each resolution.
_RESOLUTIONS = ("encoder_block_out_channels", "down_block_out_channels", "block_out_channels")


def check_autoencoder(vae: Any, num_channels: int) -> None:
    """Check that an autoencoder is supported, and has as many latent channels as the model.

    Args:
        vae: autoencoder of a pipeline.
        num_channels: output channels of the model.

    Raises:
        ValueError: names the supported autoencoders, or the channels of both.
    """
    scale_factor(vae)
    latents = vae.config.get("vq_embed_dim") or vae.config["latent_channels"]
    if latents != num_channels:
        raise ValueError(
            f"The `vae` has latents of {latents} channels, but the model has {num_channels}; load the autoencoder "
            f"that the model was trained with, or one with the same latents."
        )


def scale_factor(vae: Any) -> int:
    """Return the number of pixels per latent along a side; 1 without an autoencoder.

    Raises:
        ValueError: it is not one of `AUTOENCODERS`.
    """
    if vae is None:
        return 1
    if not isinstance(vae, AUTOENCODERS):
        names = ", ".join(kind.__name__ for kind in AUTOENCODERS)
        raise ValueError(
            f"The `vae` is a {type(vae).__name__}, which does not encode and decode single images; use one of {names}."
        )
    return config_scale_factor(vae.config)


def config_scale_factor(config: Mapping[str, Any]) -> int:
    """Return the number of pixels per latent from an autoencoder's config: all resolutions but the coarsest halve the
    side.
    """
    resolutions = next(config[name] for name in _RESOLUTIONS if name in config)
    return int(2 ** (len(resolutions) - 1))


def clips_to_images(scheduler: Any) -> bool:
    """Return whether a scheduler clips predicted samples to [-1, 1], which latents exceed."""
    config = {} if scheduler is None else scheduler.config
    clips = config.get("clip_sample", False) and not config.get("thresholding", False)
    return bool(clips and config.get("clip_sample_range", 1.0) <= 1)


def encode_images(
    vae: Autoencoder | None,
    images: torch.Tensor,
    sample_posterior: bool = False,
    generator: torch.Generator | list[torch.Generator] | None = None,
) -> torch.Tensor:
    """Encode images to latents of unit variance.

    Args:
        vae: the autoencoder; None returns the images.
        images: `(B, C, H, W)` in [-1, 1], or clips `(B, C, F, H, W)`, whose frames are encoded separately.
        sample_posterior: sample from the autoencoder's posterior, as in training; by default its mode is taken, which
            is not random. An autoencoder without a posterior has a single encoding.
        generator: generator for sampling: one, or one for each of the B images, which are then independent.

    Returns:
        `(B, c, H / f, W / f)` in the dtype of `images`, with f from `scale_factor`, and with frames for clips.
    """
    if vae is None:
        return images
    frames = images.transpose(1, 2).flatten(0, 1) if images.ndim == 5 else images
    encoded = _in_working_precision(vae, lambda dtype: vae.encode(frames.to(dtype)))
    posterior = getattr(encoded, "latent_dist", None)
    if posterior is None:
        return _normalised(vae, _of_clips(encoded[0].to(images.dtype), images))
    latents = _of_clips(posterior.mode().to(images.dtype), images)
    if sample_posterior:
        spread = _of_clips(posterior.std.to(images.dtype), images)
        noise = randn_tensor(latents.shape, generator=generator, device=latents.device, dtype=latents.dtype)
        latents = latents + spread * noise
    return _normalised(vae, latents)


def _normalised(vae: Autoencoder, latents: torch.Tensor) -> torch.Tensor:
    shift, scale = _normalisation(vae, latents)
    return (latents - shift) * scale


def _of_clips(frames: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
    """Combine frames to clips with the shape of `like`; images are returned unchanged."""
    return frames.unflatten(0, (len(like), -1)).transpose(1, 2) if like.ndim == 5 else frames


def decode_latents(vae: Autoencoder | None, latents: torch.Tensor) -> torch.Tensor:
    """Decode latents to images: the inverse of `encode_images`.

    Args:
        vae: the autoencoder; None returns the latents.
        latents: `(B, c, h, w)`, or for clips `(B, c, F, h, w)`, whose frames are decoded separately.

    Returns:
        `(B, C, h * f, w * f)`, about in [-1, 1], in the dtype of `latents`, with frames for clips.
    """
    if vae is None:
        return latents
    if latents.ndim == 5:
        return _of_clips(decode_latents(vae, latents.transpose(1, 2).flatten(0, 1)), latents)
    shift, scale = _normalisation(vae, latents)
    unscaled = latents / scale + shift
    return _in_working_precision(vae, lambda dtype: vae.decode(unscaled.to(dtype)).sample).to(latents.dtype)


def _normalisation(vae: Autoencoder, like: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the offset and factor of the normalisation of latents, in shapes that broadcast against `like`."""
    config = vae.config
    scale = torch.tensor(config.scaling_factor, dtype=like.dtype, device=like.device)
    means, stds = config.get("latents_mean"), config.get("latents_std")
    if means is None or stds is None:
        return torch.full_like(scale, config.get("shift_factor") or 0.0), scale
    of_channels = (2, 1, -1, *[1] * (like.ndim - 2))
    mean, std = torch.tensor([means, stds], dtype=like.dtype, device=like.device).view(of_channels)
    return mean, scale / std


def _in_working_precision(vae: Autoencoder, run: Any) -> Any:
    """Run in the autoencoder's precision, or in float32 if float16 would overflow (`force_upcast`)."""
    dtype, device = vae.dtype, vae.device.type
    if not vae.config.get("force_upcast"):
        return run(dtype)
    with contextlib.ExitStack() as upcast:
        if torch.amp.is_autocast_available(device) and torch.get_autocast_dtype(device) == torch.float16:
            upcast.enter_context(torch.autocast(device, enabled=False))
        if dtype != torch.float16:
            return run(dtype)
        # diffusers' own `to` would warn about dtypes that it keeps.
        torch.nn.Module.to(vae, dtype=torch.float32)
        upcast.callback(torch.nn.Module.to, vae, dtype=dtype)
        return run(torch.float32)


def encode_pyramid(vae: Autoencoder | None, pixels: Pyramid) -> Pyramid:
    """Return the model's representation of images: the images in [-1, 1], or the averaged-down latents of the largest.

    Args:
        vae: the autoencoder; None for a model on pixels.
        pixels: levels `(B, C, H_i, W_i)` in [0, 1], innermost first.
    """
    if vae is None:
        return [2 * level - 1 for level in pixels]
    sides = [level.shape[-2] // scale_factor(vae) for level in pixels]
    return build_pyramid(encode_images(vae, 2 * pixels[-1] - 1), sides)
