# SPDX-License-Identifier: Apache-2.0
"""Classifier-free guidance of one level's prediction."""

from __future__ import annotations

import torch


def guide(
    unconditional: torch.Tensor, conditional: torch.Tensor, guidance_scale: float, guidance_rescale: float = 0.0
) -> torch.Tensor:
    """Push a prediction away from the unconditional one: u + w (c - u) (Imagen, arXiv:2205.11487, equation 2; ml-mdm
    applies it to v at every level).

    Args:
        unconditional: prediction u without the prompt, `(B, C, H, W)`.
        conditional: prediction c with the prompt, `(B, C, H, W)`.
        guidance_scale: w; 1 gives c.
        guidance_rescale: 0 to 1, how far each sample's standard deviation is brought back to that of c
            (arXiv:2305.08891, section 3.4).
    """
    guided = unconditional + guidance_scale * (conditional - unconditional)
    if guidance_rescale == 0.0:
        return guided
    axes = tuple(range(1, guided.ndim))
    rescaled = guided * (conditional.std(dim=axes, keepdim=True) / guided.std(dim=axes, keepdim=True))
    return guidance_rescale * rescaled + (1.0 - guidance_rescale) * guided
