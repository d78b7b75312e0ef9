# SPDX-License-Identifier: Apache-2.0
"""Blocks of one resolution: residual layers, attention after each, resampling at the end; each layer may be another
block's, borrowed.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from typing import Any, cast

import torch
from diffusers.models.downsampling import Downsample2D
from torch import nn

from .forward_inputs import TextConditioning
from .layers import ResidualLayer, SpatialAttention, Upsample, zero_
from .level_config import LevelConfig
from .temporal import FrameDownsample, FrameUpsample, TemporalAttention


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
        has_temporal_rotary: rotary positions in the temporal attention.
        temporal_downsample: resample frames instead of pixels.
    """

    time_embed_dim: int
    norm_num_groups: int
    norm_eps: float
    dropout: float
    num_attention_heads: int
    attention_norm_num_groups: int
    has_attention_ffn: bool
    text_dim: int | None
    has_temporal_rotary: bool = False
    temporal_downsample: bool = False

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
            has_temporal_rotary=row.temporal_rotary,
            temporal_downsample=row.temporal_downsample,
        )

    def resnet(self, in_channels: int, out_channels: int) -> ResidualLayer:
        """A residual layer whose second norm is scaled and shifted by the embedding."""
        return ResidualLayer(
            in_channels, out_channels, self.time_embed_dim, self.norm_num_groups, self.norm_eps, self.dropout
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

    def temporal_attention(self, channels: int) -> TemporalAttention:
        """An attention layer among frames."""
        return TemporalAttention(channels, self.norm_eps, self.has_temporal_rotary)

    def downsampler(self, channels: int) -> nn.Module:
        """Half the pixels of each side, or half the frames."""
        if self.temporal_downsample:
            return FrameDownsample(channels)
        # name="op" registers the convolution once; the default registers it under two names.
        return Downsample2D(channels, use_conv=True, name="op")

    def upsampler(self, channels: int) -> nn.Module:
        """Twice the pixels of each side, or twice the frames."""
        return FrameUpsample(channels) if self.temporal_downsample else Upsample(channels)


@dataclasses.dataclass(frozen=True)
class BlockAttentions:
    """Attention layers after each residual layer of a block.

    Args:
        spatial: among the pixels of a frame, and to the text.
        temporal: among the frames, after the spatial ones.
    """

    spatial: int
    temporal: int = 0

    @classmethod
    def at_resolution(cls, row: LevelConfig, index: int) -> BlockAttentions:
        """What a level has at one of its resolutions."""
        temporal = row.temporal_layers_per_block
        return cls(row.attention_layers_per_block[index], temporal[index] if temporal else 0)


@dataclasses.dataclass(frozen=True)
class _OnTensors:
    """A layer that reads text, as a function of the text's tensors."""

    layer: nn.Module
    text: TextConditioning

    def __call__(self, hidden_states: torch.Tensor, *tensors: torch.Tensor | None) -> torch.Tensor:
        return self.layer(hidden_states, self.text.with_tensors(tensors))


class LayerBorrower(nn.Module):
    """A module that may run layers of another one in place of its own.

    A borrowed layer belongs to the module that lends it and is registered there alone, so it has one name and one
    place in files, optimizers and averages. Here it leaves `None` in its place and stands in a plain dict, whose
    entries are no submodules.
    """

    def __init__(self) -> None:
        super().__init__()
        self.borrowed: dict[str, nn.Module] = {}

    def layer(self, kind: str, key: int | str | None = None) -> Any:
        """The layer that runs as `kind`, or as entry `key` of the list or dict `kind`: own or borrowed."""
        own: Any = getattr(self, kind)
        if key is not None:
            own = own[key]
        return self.borrowed[_place(kind, key)] if own is None else own

    def borrow(self, layer: nn.Module, kind: str, key: int | str | None = None) -> None:
        """Drop the own layer and run `layer`."""
        if key is None:
            setattr(self, kind, None)
        else:
            getattr(self, kind)[key] = None
        self.borrowed[_place(kind, key)] = layer


def _place(kind: str, key: int | str | None) -> str:
    return kind if key is None else f"{kind}.{key}"


class ResolutionBlock(LayerBorrower):
    """Residual layers of one resolution with attention layers after each.

    Feature maps of clips have frames as rows: where `(B, C, H, W)` is written, B is the number of samples times their
    frames.

    Args:
        settings: shared by the level.
        in_channels: of each residual layer, in order.
        out_channels: of the block.
        attentions: how many attention layers follow each residual layer.
    """

    def __init__(
        self, settings: BlockSettings, in_channels: list[int], out_channels: int, attentions: BlockAttentions
    ) -> None:
        super().__init__()
        self.gradient_checkpointing = False
        self.num_attentions = attentions.spatial
        self.num_temporal_attentions = attentions.temporal
        self.temporal_downsample = settings.temporal_downsample
        self.resnets = nn.ModuleList([settings.resnet(channels, out_channels) for channels in in_channels])
        self.attentions = nn.ModuleList(
            [settings.attention(out_channels) for _ in range(attentions.spatial * len(in_channels))]
        )
        self.temporal_attentions = nn.ModuleList(
            [settings.temporal_attention(out_channels) for _ in range(attentions.temporal * len(in_channels))]
        )

    _gradient_checkpointing_func: Callable[..., torch.Tensor]

    def run_layers(
        self,
        index: int,
        hidden_states: torch.Tensor,
        embedding: torch.Tensor,
        text: TextConditioning | None,
        num_frames: int,
    ) -> torch.Tensor:
        """Residual layer `index` and the attention layers that follow it; `embedding`, after its silu, has a row for
        each frame.
        """
        hidden_states = self.run(self.layer("resnets", index), hidden_states, embedding)
        count = self.num_attentions
        for position in range(index * count, (index + 1) * count):
            hidden_states = self.run(self.layer("attentions", position), hidden_states, text)
        count = self.num_temporal_attentions
        for position in range(index * count, (index + 1) * count):
            hidden_states = self.run(self.layer("temporal_attentions", position), hidden_states, num_frames)
        return hidden_states

    def layers_by_place(self) -> Iterator[tuple[tuple[str, int, int], tuple[str, int]]]:
        """For each layer (list, which residual layer it follows, how many of its kind lie between them) and (list,
        position there); the first is the same in a block with more or fewer attention layers.
        """
        per_resnet = {"resnets": 1, "attentions": self.num_attentions}
        per_resnet["temporal_attentions"] = self.num_temporal_attentions
        for kind, count in per_resnet.items():
            for index in range(len(self.resnets)):
                for step in range(count):
                    yield (kind, index, step), (kind, index * count + step)
        for kind in ("downsamplers", "upsamplers"):
            if getattr(self, kind, None) is not None:
                yield (kind, 0, 0), (kind, 0)

    def resample(self, kind: str, hidden_states: torch.Tensor, num_frames: int) -> torch.Tensor:
        """Change the resolution at the end of the block."""
        layer = self.layer(kind, 0)
        return layer(hidden_states, num_frames) if self.temporal_downsample else layer(hidden_states)

    def run(self, layer: nn.Module, hidden_states: torch.Tensor, condition: object) -> torch.Tensor:
        """Call a layer, recomputing it in the backward pass when gradient checkpointing is on."""
        if torch.is_grad_enabled() and self.gradient_checkpointing:
            if isinstance(condition, TextConditioning):
                # Reentrant checkpointing finds gradients for tensors among the arguments only.
                return self._gradient_checkpointing_func(
                    _OnTensors(layer, condition), hidden_states, *condition.tensors()
                )
            return self._gradient_checkpointing_func(layer, hidden_states, condition)
        return layer(hidden_states, condition)

    def zero_init_(self) -> None:
        """Zero the last layer of every residual branch; shared layers are left to the level they belong to."""
        for resnet in self.resnets:
            if resnet is not None:
                zero_(cast(ResidualLayer, resnet).conv2)
        for attention in (*self.attentions, *self.temporal_attentions):
            if attention is not None:
                cast("SpatialAttention | TemporalAttention", attention).zero_init_()


def repeat_for_frames(values: torch.Tensor, num_frames: int) -> torch.Tensor:
    """`(B, D)` → `(B F, D)`: what holds for a sample holds for each of its frames."""
    return values if num_frames == 1 else values.repeat_interleave(num_frames, dim=0)


class DownBlock(ResolutionBlock):
    """On the way down: `num_layers` residual layers, then half the pixels of each side (or frames) if `downsample`.

    Args:
        settings: shared by the level.
        in_channels: of the input.
        out_channels: of the output.
        num_layers: residual layers.
        attentions: attention layers after each.
        downsample: end with a stride-2 convolution.
    """

    def __init__(
        self,
        settings: BlockSettings,
        in_channels: int,
        out_channels: int,
        num_layers: int,
        attentions: BlockAttentions,
        downsample: bool,
    ) -> None:
        super().__init__(settings, [in_channels] + [out_channels] * (num_layers - 1), out_channels, attentions)
        self.downsamplers = nn.ModuleList([settings.downsampler(out_channels)]) if downsample else None

    def forward(
        self,
        hidden_states: torch.Tensor,
        embedding: torch.Tensor,
        text: TextConditioning | None = None,
        num_frames: int = 1,
    ) -> tuple[torch.Tensor, tuple[torch.Tensor, ...]]:
        """`(B, C, H, W)` → the output and the skips, one after each residual layer and one after resampling."""
        embedding = repeat_for_frames(embedding, num_frames)
        skips: list[torch.Tensor] = []
        for index in range(len(self.resnets)):
            hidden_states = self.run_layers(index, hidden_states, embedding, text, num_frames)
            skips.append(hidden_states)
        if self.downsamplers is not None:
            hidden_states = self.resample("downsamplers", hidden_states, num_frames)
            skips.append(hidden_states)
        return hidden_states, tuple(skips)


class UpBlock(ResolutionBlock):
    """On the way up: one residual layer for each skip, then twice the pixels of each side (or frames) if `upsample`.

    Args:
        settings: shared by the level.
        in_channels: of the input.
        skip_channels: of the skips in the order they are used.
        out_channels: of the output.
        attentions: attention layers after each residual layer.
        upsample: end with nearest-neighbour x2 and a convolution.
    """

    def __init__(
        self,
        settings: BlockSettings,
        in_channels: int,
        skip_channels: list[int],
        out_channels: int,
        attentions: BlockAttentions,
        upsample: bool,
    ) -> None:
        inputs = [in_channels] + [out_channels] * (len(skip_channels) - 1)
        joined = [channels + skip for channels, skip in zip(inputs, skip_channels, strict=True)]
        super().__init__(settings, joined, out_channels, attentions)
        self.upsamplers = nn.ModuleList([settings.upsampler(out_channels)]) if upsample else None

    def forward(
        self,
        hidden_states: torch.Tensor,
        skips: tuple[torch.Tensor, ...],
        embedding: torch.Tensor,
        text: TextConditioning | None = None,
        num_frames: int = 1,
    ) -> torch.Tensor:
        """`(B, C, H, W)` and the skips in the order they are used → `(B', out_channels, H', W')`."""
        embedding = repeat_for_frames(embedding, num_frames)
        for index, skip in enumerate(skips):
            joined = torch.cat([hidden_states, skip], dim=1)
            hidden_states = self.run_layers(index, joined, embedding, text, num_frames)
        if self.upsamplers is not None:
            hidden_states = self.resample("upsamplers", hidden_states, num_frames)
        return hidden_states


class MidBlock(ResolutionBlock):
    """Residual layer, attention, residual layer at the coarsest resolution of level 0."""

    def __init__(self, settings: BlockSettings, channels: int) -> None:
        super().__init__(settings, [channels, channels], channels, BlockAttentions(0))
        self.attentions = nn.ModuleList([settings.attention(channels)])

    def forward(
        self,
        hidden_states: torch.Tensor,
        embedding: torch.Tensor,
        text: TextConditioning | None = None,
        num_frames: int = 1,
    ) -> torch.Tensor:
        """`(B, C, H, W)` → `(B, C, H, W)`."""
        embedding = repeat_for_frames(embedding, num_frames)
        hidden_states = self.run(self.layer("resnets", 0), hidden_states, embedding)
        hidden_states = self.run(self.layer("attentions", 0), hidden_states, text)
        return self.run(self.layer("resnets", 1), hidden_states, embedding)
