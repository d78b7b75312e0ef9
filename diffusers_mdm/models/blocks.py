# SPDX-License-Identifier: Apache-2.0
"""Blocks of one resolution: residual layers, attention after each, resampling at the end."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import cast

import torch
from diffusers.models.downsampling import Downsample2D
from diffusers.models.resnet import ResnetBlock2D
from diffusers.models.upsampling import Upsample2D
from torch import nn

from .attention import SpatialAttention, zero_
from .level_config import LevelConfig
from .text_conditioning import TextConditioning


@dataclasses.dataclass(frozen=True)
class BlockSettings:
    """What every block of a level shares.

    Args:
        time_embed_dim: width of the time embedding.
        norm_num_groups: of the group norms outside attention.
        norm_eps: of all norms.
        dropout: in the residual layers.
        num_attention_heads: of every attention.
        attention_norm_num_groups: of the group norms in attention.
        has_attention_ffn: feed-forward part after each attention.
        text_dim: width of the text, or `None`.
    """

    time_embed_dim: int
    norm_num_groups: int
    norm_eps: float
    dropout: float
    num_attention_heads: int
    attention_norm_num_groups: int
    has_attention_ffn: bool
    text_dim: int | None

    @classmethod
    def of_level(
        cls,
        row: LevelConfig,
        *,
        time_embed_dim: int,
        norm_eps: float,
        num_attention_heads: int,
        attention_norm_num_groups: int,
        text_dim: int | None,
    ) -> BlockSettings:
        """Join what a level says with what the whole model says."""
        return cls(
            time_embed_dim=time_embed_dim,
            norm_num_groups=row.norm_num_groups,
            norm_eps=norm_eps,
            dropout=row.dropout,
            num_attention_heads=num_attention_heads,
            attention_norm_num_groups=attention_norm_num_groups,
            has_attention_ffn=row.has_attention_ffn,
            text_dim=text_dim,
        )

    def resnet(self, in_channels: int, out_channels: int) -> ResnetBlock2D:
        """A residual layer whose second norm is scaled and shifted by the time embedding."""
        return ResnetBlock2D(
            in_channels=in_channels,
            out_channels=out_channels,
            temb_channels=self.time_embed_dim,
            groups=self.norm_num_groups,
            eps=self.norm_eps,
            dropout=self.dropout,
            non_linearity="silu",
            time_embedding_norm="scale_shift",
        )

    def attention(self, channels: int) -> SpatialAttention:
        """A spatial attention layer."""
        return SpatialAttention(
            channels,
            self.num_attention_heads,
            self.text_dim,
            self.attention_norm_num_groups,
            self.norm_eps,
            self.has_attention_ffn,
        )


class ResolutionBlock(nn.Module):
    """Residual layers of one resolution with `num_attentions` attention layers after each.

    Args:
        settings: shared by the level.
        in_channels: of each residual layer, in order.
        out_channels: of the block.
        num_attentions: attention layers after each residual layer.
    """

    def __init__(
        self, settings: BlockSettings, in_channels: list[int], out_channels: int, num_attentions: int
    ) -> None:
        super().__init__()
        self.gradient_checkpointing = False
        self.num_attentions = num_attentions
        self.resnets = nn.ModuleList([settings.resnet(channels, out_channels) for channels in in_channels])
        self.attentions = nn.ModuleList(
            [settings.attention(out_channels) for _ in range(num_attentions * len(in_channels))]
        )

    resnets: nn.ModuleList
    attentions: nn.ModuleList
    _gradient_checkpointing_func: Callable[..., torch.Tensor]

    def run_layers(
        self, index: int, hidden_states: torch.Tensor, embedding: torch.Tensor, text: TextConditioning | None
    ) -> torch.Tensor:
        """Residual layer `index` and the attention layers that follow it."""
        hidden_states = self.run(self.resnets[index], hidden_states, embedding)
        for attention in self.attentions[index * self.num_attentions : (index + 1) * self.num_attentions]:
            hidden_states = self.run(attention, hidden_states, text)
        return hidden_states

    def run(self, layer: nn.Module, hidden_states: torch.Tensor, condition: object) -> torch.Tensor:
        """Call a layer, recomputing it in the backward pass when gradient checkpointing is on."""
        if torch.is_grad_enabled() and self.gradient_checkpointing:
            return self._gradient_checkpointing_func(layer, hidden_states, condition)
        return layer(hidden_states, condition)

    def zero_init_(self) -> None:
        """Zero the last layer of every residual branch."""
        for resnet in self.resnets:
            zero_(cast(ResnetBlock2D, resnet).conv2)
        for attention in self.attentions:
            cast(SpatialAttention, attention).zero_init_()


class DownBlock(ResolutionBlock):
    """On the way down: `num_layers` residual layers, then half the resolution if `downsample`.

    Args:
        settings: shared by the level.
        in_channels: of the input.
        out_channels: of the output.
        num_layers: residual layers.
        num_attentions: attention layers after each.
        downsample: end with a stride-2 convolution.
    """

    def __init__(
        self,
        settings: BlockSettings,
        in_channels: int,
        out_channels: int,
        num_layers: int,
        num_attentions: int,
        downsample: bool,
    ) -> None:
        super().__init__(settings, [in_channels] + [out_channels] * (num_layers - 1), out_channels, num_attentions)
        # name="op" registers the convolution once; the default registers it under two names.
        self.downsamplers = (
            nn.ModuleList([Downsample2D(out_channels, use_conv=True, name="op")]) if downsample else None
        )

    def forward(
        self, hidden_states: torch.Tensor, embedding: torch.Tensor, text: TextConditioning | None = None
    ) -> tuple[torch.Tensor, tuple[torch.Tensor, ...]]:
        """`(B, C, H, W)` → the output and the skips, one after each residual layer and one after resampling."""
        skips: list[torch.Tensor] = []
        for index in range(len(self.resnets)):
            hidden_states = self.run_layers(index, hidden_states, embedding, text)
            skips.append(hidden_states)
        if self.downsamplers is not None:
            hidden_states = self.downsamplers[0](hidden_states)
            skips.append(hidden_states)
        return hidden_states, tuple(skips)


class UpBlock(ResolutionBlock):
    """On the way up: one residual layer for each skip, then twice the resolution if `upsample`.

    Args:
        settings: shared by the level.
        in_channels: of the input.
        skip_channels: of the skips in the order they are used.
        out_channels: of the output.
        num_attentions: attention layers after each residual layer.
        upsample: end with nearest-neighbour x2 and a convolution.
    """

    def __init__(
        self,
        settings: BlockSettings,
        in_channels: int,
        skip_channels: list[int],
        out_channels: int,
        num_attentions: int,
        upsample: bool,
    ) -> None:
        inputs = [in_channels] + [out_channels] * (len(skip_channels) - 1)
        joined = [channels + skip for channels, skip in zip(inputs, skip_channels, strict=True)]
        super().__init__(settings, joined, out_channels, num_attentions)
        self.upsamplers = nn.ModuleList([Upsample2D(out_channels, use_conv=True)]) if upsample else None

    def forward(
        self,
        hidden_states: torch.Tensor,
        skips: tuple[torch.Tensor, ...],
        embedding: torch.Tensor,
        text: TextConditioning | None = None,
    ) -> torch.Tensor:
        """`(B, C, H, W)` and the skips in the order they are used → `(B, out_channels, H', W')`."""
        for index, skip in enumerate(skips):
            joined = torch.cat([hidden_states, skip], dim=1)
            hidden_states = self.run_layers(index, joined, embedding, text)
        if self.upsamplers is not None:
            hidden_states = self.upsamplers[0](hidden_states)
        return hidden_states


class MidBlock(ResolutionBlock):
    """Residual layer, attention, residual layer at the coarsest resolution of level 0."""

    def __init__(self, settings: BlockSettings, channels: int) -> None:
        super().__init__(settings, [channels, channels], channels, 0)
        self.attentions = nn.ModuleList([settings.attention(channels)])

    def forward(
        self, hidden_states: torch.Tensor, embedding: torch.Tensor, text: TextConditioning | None = None
    ) -> torch.Tensor:
        """`(B, C, H, W)` → `(B, C, H, W)`."""
        hidden_states = self.run(self.resnets[0], hidden_states, embedding)
        hidden_states = self.run(self.attentions[0], hidden_states, text)
        return self.run(self.resnets[1], hidden_states, embedding)
