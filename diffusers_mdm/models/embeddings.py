# SPDX-License-Identifier: Apache-2.0
"""Embeddings of scalars: time and micro-conditioning."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from diffusers.models.embeddings import TimestepEmbedding, get_timestep_embedding
from torch import nn

from .layer_borrowing import LayerBorrower
from .level_config import LevelConfig

# A micro-condition other than "scale" lies in [0, 1] and is stretched to the range of the time (ml-mdm).
_MICRO_CONDITIONING_STRETCH = 1000


def sinusoids(values: torch.Tensor, dim: int, dtype: torch.dtype) -> torch.Tensor:
    """Embed scalars `(B,)` as `(B, dim)`: sines first, then cosines, frequencies 10000^(-i / (dim / 2))."""
    return get_timestep_embedding(values, dim, flip_sin_to_cos=False, downscale_freq_shift=0).to(dtype)


class LevelEmbedding(LayerBorrower):
    """Time and micro-conditioning of one level, each with its own weights unless they are shared.

    Args:
        row: the level.
        time_embed_dim: width D of the result; the sinusoids have D / 4.
    """

    def __init__(self, row: LevelConfig, time_embed_dim: int) -> None:
        super().__init__()
        self.sinusoid_dim = time_embed_dim // 4
        self.defaults = dict(zip(row.micro_conditioning_keys, row.micro_conditioning_defaults, strict=True))
        self.time_embedding = TimestepEmbedding(self.sinusoid_dim, time_embed_dim)
        self.micro_embeddings = nn.ModuleDict(
            {key: TimestepEmbedding(self.sinusoid_dim, time_embed_dim) for key in row.micro_conditioning_keys}
        )

    def forward(
        self, timestep: torch.Tensor, micro_conditioning: Mapping[str, torch.Tensor], pooled: torch.Tensor | None
    ) -> torch.Tensor:
        """Sum of the embedded time, `pooled` (text, class) and the micro-conditions.

        Args:
            timestep: `(B,)`, 0 … num_train_timesteps - 1.
            micro_conditioning: values `(B,)` by key; a missing one takes the level's default.
            pooled: `(B, D)` or `None`.

        Returns:
            `(B, D)`.
        """
        embed_time = self.layer("time_embedding")
        dtype = embed_time.linear_1.weight.dtype if pooled is None else pooled.dtype
        embedding = embed_time(sinusoids(timestep, self.sinusoid_dim, dtype))
        if pooled is not None:
            embedding = embedding + pooled
        for key, default in self.defaults.items():
            value = micro_conditioning.get(key)
            value = torch.full_like(timestep, default, dtype=torch.float32) if value is None else value.float()
            if key == "scale":
                value = (value / default).clamp(max=1.0) * default
            else:
                value = _MICRO_CONDITIONING_STRETCH * value
            embed = self.layer("micro_embeddings", key)
            embedding = embedding + embed(sinusoids(value, self.sinusoid_dim, dtype))
        return embedding

    def share_with(self, inner: LevelEmbedding) -> None:
        """Run the layers of another level's embedding; this level's default values stay."""
        self.borrow(inner.layer("time_embedding"), "time_embedding")
        for key in self.defaults:
            if key in inner.defaults:
                self.borrow(inner.layer("micro_embeddings", key), "micro_embeddings", key)
