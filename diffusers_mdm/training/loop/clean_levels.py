# SPDX-License-Identifier: Apache-2.0
"""From the pixels of a batch to the clean pyramid that the model learns to find in noise."""

from collections.abc import Sequence

import torch

from ...pipelines.drawing.latent_space import encode_pictures
from ...pyramid import Pyramid, build_pyramid
from ..pixel_range import to_unit_range
from ..recipe.stage import StageRecipe
from ..state.run import Run


@torch.no_grad()
def clean_pyramid(
    run: Run, stage: StageRecipe, pixels: torch.Tensor, generators: Sequence[torch.Generator] | None = None
) -> Pyramid:
    """The stage's levels of pictures: their averages, or those of their latents where the run has an autoencoder.

    Args:
        run: has the model's sizes and the autoencoder.
        stage: says how many levels there are.
        pixels: uint8 `(B, 3, S, S)`, or clips `(B, 3, F, S, S)`; S is the side of the outermost level in pixels.
        generators: one for each image or clip, from which its latents are drawn (of the autoencoder's posterior, as
            in the scripts of diffusers); each gives one number for each latent, and none for pixels. Without them
            the most probable latents are taken, for measurements that are to be the same each time.

    Returns:
        Levels (B, C, side, side), in [-1, 1] or of about unit variance, innermost first; of clips with frames.
    """
    latents = encode_pictures(
        run.vae,
        to_unit_range(pixels),
        sample_posterior=generators is not None,
        generator=None if generators is None else list(generators),
    )
    frames = run.unet.level_frames[: stage.levels] if pixels.ndim == 5 else None
    return build_pyramid(latents, run.unet.sample_sizes[: stage.levels], frames)
