# SPDX-License-Identifier: Apache-2.0
"""Latent pyramids: what the model denoises are an autoencoder's latents, averaged down level by level.

Latents are brought to unit variance as the autoencoder's config says, `(z - shift_factor) * scaling_factor`, or per
channel with `latents_mean` and `latents_std`. Without an autoencoder the model denoises the pictures themselves, and
everything here leaves them as they are.
"""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from typing import Any

import torch
from diffusers import AutoencoderKL
from diffusers.utils.torch_utils import randn_tensor

from diffusers_mdm.pyramid import Pyramid, build_pyramid


def scale_factor(vae: AutoencoderKL | None) -> int:
    """Pixels of a picture's side for one of its latents' side; 1 without an autoencoder."""
    return 1 if vae is None else config_scale_factor(vae.config)


def config_scale_factor(config: Mapping[str, Any]) -> int:
    """The same from an `AutoencoderKL`'s config: every resolution but the coarsest halves the side."""
    return int(2 ** (len(config["block_out_channels"]) - 1))


def clips_to_pictures(scheduler: Any) -> bool:
    """Whether a scheduler cuts predicted samples to [-1, 1], which latents reach beyond."""
    config = {} if scheduler is None else scheduler.config
    clips = config.get("clip_sample", False) and not config.get("thresholding", False)
    return bool(clips and config.get("clip_sample_range", 1.0) <= 1)


def encode_pictures(
    vae: AutoencoderKL | None,
    pictures: torch.Tensor,
    sample_posterior: bool = False,
    generator: torch.Generator | list[torch.Generator] | None = None,
) -> torch.Tensor:
    """Latents of unit variance of pictures.

    Args:
        vae: the autoencoder; None gives the pictures back.
        pictures: `(B, C, H, W)` in [-1, 1], or clips `(B, C, F, H, W)`, whose frames are encoded one by one.
        sample_posterior: draw from the autoencoder's posterior, as training does; by default its mode is taken, so
            that nothing is random.
        generator: for drawing: one, or one for each of the B rows, which then does not depend on the others.

    Returns:
        `(B, c, H / f, W / f)` in the dtype of `pictures`, f from `scale_factor`, with frames where they have them.
    """
    if vae is None:
        return pictures
    frames = pictures.transpose(1, 2).flatten(0, 1) if pictures.ndim == 5 else pictures
    posterior = _in_working_precision(vae, lambda dtype: vae.encode(frames.to(dtype)).latent_dist)
    latents = _of_rows(posterior.mode().to(pictures.dtype), pictures)
    if sample_posterior:
        spread = _of_rows(posterior.std.to(pictures.dtype), pictures)
        noise = randn_tensor(latents.shape, generator=generator, device=latents.device, dtype=latents.dtype)
        latents = latents + spread * noise
    shift, scale = _normalisation(vae, latents)
    return (latents - shift) * scale


def _of_rows(frames: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
    """Frames that were taken one by one, as the clips `like` has them; pictures as they are."""
    return frames.unflatten(0, (len(like), -1)).transpose(1, 2) if like.ndim == 5 else frames


def decode_latents(vae: AutoencoderKL | None, latents: torch.Tensor) -> torch.Tensor:
    """Pictures of latents, the way back from `encode_pictures`.

    Args:
        vae: the autoencoder; None gives the latents back.
        latents: `(B, c, h, w)`, or of clips `(B, c, F, h, w)`, whose frames are decoded one by one.

    Returns:
        `(B, C, h * f, w * f)`, about in [-1, 1], in the dtype of `latents`, with frames where the latents have them.
    """
    if vae is None:
        return latents
    if latents.ndim == 5:
        return _of_rows(decode_latents(vae, latents.transpose(1, 2).flatten(0, 1)), latents)
    shift, scale = _normalisation(vae, latents)
    unscaled = latents / scale + shift
    return _in_working_precision(vae, lambda dtype: vae.decode(unscaled.to(dtype)).sample).to(latents.dtype)


def _normalisation(vae: AutoencoderKL, like: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """What is subtracted from latents, and what they are multiplied by then, shaped to work on `like`."""
    config = vae.config
    scale = torch.tensor(config.scaling_factor, dtype=like.dtype, device=like.device)
    means, stds = getattr(config, "latents_mean", None), getattr(config, "latents_std", None)
    if means is None or stds is None:
        return torch.full_like(scale, config.shift_factor or 0.0), scale
    of_channels = (2, 1, -1, *[1] * (like.ndim - 2))
    mean, std = torch.tensor([means, stds], dtype=like.dtype, device=like.device).view(of_channels)
    return mean, scale / std


def _in_working_precision(vae: AutoencoderKL, run: Any) -> Any:
    """Run in the autoencoder's precision, or in float32 where float16 would overflow (`force_upcast`)."""
    dtype, device = vae.dtype, vae.device.type
    if not vae.config.force_upcast:
        return run(dtype)
    with contextlib.ExitStack() as upcast:
        if torch.amp.is_autocast_available(device) and torch.get_autocast_dtype(device) == torch.float16:
            upcast.enter_context(torch.autocast(device, enabled=False))
        if dtype != torch.float16:
            return run(dtype)
        # The host's own `to` warns about dtypes it would keep.
        torch.nn.Module.to(vae, dtype=torch.float32)
        upcast.callback(torch.nn.Module.to, vae, dtype=dtype)
        return run(torch.float32)


def encode_pyramid(vae: AutoencoderKL | None, pixels: Pyramid) -> Pyramid:
    """What the model denoises of given pictures: the pictures in [-1, 1], or the pooled latents of the largest.

    Args:
        vae: the autoencoder; None for a model of pixels.
        pixels: levels `(B, C, H_i, W_i)` in [0, 1], innermost first.
    """
    if vae is None:
        return [2 * level - 1 for level in pixels]
    sides = [level.shape[-2] // scale_factor(vae) for level in pixels]
    return build_pyramid(encode_pictures(vae, 2 * pixels[-1] - 1), sides)
