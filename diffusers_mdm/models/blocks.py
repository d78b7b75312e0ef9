# SPDX-License-Identifier: Apache-2.0
"""Blocks of one resolution: residual layers, each followed by attention, and resampling at the end.

A block can share layers with a block of another level (see `LayerBorrower`).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from typing import Any, cast

import torch
from diffusers.models.downsampling import Downsample2D
from torch import nn

from .forward_inputs import Embedding, Modulation, TextConditioning
from .layers import ResidualLayer, SpatialAttention, Upsample, zero_
from .level_config import LevelConfig
from .temporal import FrameDownsample, FrameUpsample, TemporalAttention


@dataclasses.dataclass(frozen=True)
class BlockSettings:
    """Settings that all blocks of a level have in common.

    Args:
        time_embed_dim: width of the time embedding.
        norm_num_groups: groups of the group norms outside attention.
        norm_eps: epsilon of all norms.
        dropout: dropout probability in the residual layers.
        num_attention_heads: heads of every attention layer.
        attention_norm_num_groups: groups of the group norms in attention.
        has_attention_ffn: whether a feed-forward part follows each attention layer.
        text_dim: width of the text features, None without text.
        has_temporal_rotary: whether temporal attention has rotary positions.
        temporal_downsample: whether frames are resampled instead of pixels.
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
        config: LevelConfig,
        *,
        time_embed_dim: int,
        norm_eps: float,
        num_attention_heads: int,
        attention_norm_num_groups: int,
        text_dim: int | None,
    ) -> BlockSettings:
        """Combine the settings of a level with those of the whole model."""
        return cls(
            time_embed_dim=time_embed_dim,
            norm_num_groups=config.norm_num_groups,
            norm_eps=norm_eps,
            dropout=config.dropout,
            num_attention_heads=num_attention_heads,
            attention_norm_num_groups=attention_norm_num_groups,
            has_attention_ffn=config.has_attention_ffn,
            text_dim=text_dim,
            has_temporal_rotary=config.temporal_rotary,
            temporal_downsample=config.temporal_downsample,
        )

    def resnet(self, in_channels: int, out_channels: int) -> ResidualLayer:
        """A residual layer whose second norm is scaled and shifted by the embedding."""
        return ResidualLayer(
            in_channels, out_channels, self.time_embed_dim, self.norm_num_groups, self.norm_eps, self.dropout
        )

    def attention(self, channels: int) -> SpatialAttention:
        """Return a spatial attention layer."""
        return SpatialAttention(
            channels,
            self.num_attention_heads,
            self.text_dim,
            self.attention_norm_num_groups,
            self.norm_eps,
            self.has_attention_ffn,
        )

    def temporal_attention(self, channels: int) -> TemporalAttention:
        """Return an attention layer between frames."""
        return TemporalAttention(channels, self.norm_eps, self.has_temporal_rotary)

    def downsampler(self, channels: int) -> nn.Module:
        """Return a layer that halves the sides, or the number of frames."""
        if self.temporal_downsample:
            return FrameDownsample(channels)
        # With name="op" the convolution is registered once; the default registers it under two names.
        return Downsample2D(channels, use_conv=True, name="op")

    def upsampler(self, channels: int) -> nn.Module:
        """Return a layer that doubles the sides, or the number of frames."""
        return FrameUpsample(channels) if self.temporal_downsample else Upsample(channels)


@dataclasses.dataclass(frozen=True)
class BlockAttentions:
    """Numbers of attention layers after each residual layer of a block.

    Args:
        spatial: attention between the pixels of a frame, and to the text.
        temporal: attention between the frames, after the spatial layers.
    """

    spatial: int
    temporal: int = 0

    @classmethod
    def at_resolution(cls, config: LevelConfig, index: int) -> BlockAttentions:
        """Return the numbers for one of a level's resolutions."""
        temporal = config.temporal_layers_per_block
        return cls(config.attention_layers_per_block[index], temporal[index] if temporal else 0)


@dataclasses.dataclass(frozen=True)
class _OnTensors:
    """A layer with text as a function of the text's tensors."""

    layer: nn.Module
    text: TextConditioning

    def __call__(self, hidden_states: torch.Tensor, *tensors: torch.Tensor | None) -> torch.Tensor:
        return self.layer(hidden_states, self.text.with_tensors(tensors))


class LayerBorrower(nn.Module):
    """A module that can use layers of another module instead of its own.

    A borrowed layer is registered only in the module that owns it, so it has one name and one place in files,
    optimizers and averages. In the borrowing module, the attribute is None and the layer is kept in a plain dict,
    whose entries are not submodules.
    """

    def __init__(self) -> None:
        super().__init__()
        self.borrowed: dict[str, nn.Module] = {}

    def layer(self, kind: str, key: int | str | None = None) -> Any:
        """Return the layer that is used as `kind`, or as entry `key` of the list or dict `kind`, own or borrowed."""
        own: Any = getattr(self, kind)
        if key is not None:
            own = own[key]
        return self.borrowed[_place(kind, key)] if own is None else own

    def borrow(self, layer: nn.Module, kind: str, key: int | str | None = None) -> None:
        """Replace the module's own layer by `layer`."""
        if key is None:
            setattr(self, kind, None)
        else:
            getattr(self, kind)[key] = None
        self.borrowed[_place(kind, key)] = layer


def _place(kind: str, key: int | str | None) -> str:
    return kind if key is None else f"{kind}.{key}"


class ResolutionBlock(LayerBorrower):
    """Residual layers of one resolution, each followed by attention layers.

    In feature maps of clips, frames are part of the batch: in the shape `(B, C, H, W)`, B is then the number of
    samples times their frames.

    Args:
        settings: settings of the level.
        in_channels: input channels of each residual layer, in order.
        out_channels: output channels of the block.
        attentions: numbers of attention layers after each residual layer.
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
        embedding: Embedding,
        text: TextConditioning | None,
        num_frames: int,
    ) -> torch.Tensor:
        """Run residual layer `index` and the attention layers that follow it.

        `embedding` has one entry per frame.
        """
        hidden_states = self.run_resnet(index, hidden_states, embedding)
        count = self.num_attentions
        for position in range(index * count, (index + 1) * count):
            hidden_states = self.run(self.layer("attentions", position), hidden_states, text)
        count = self.num_temporal_attentions
        for position in range(index * count, (index + 1) * count):
            hidden_states = self.run(self.layer("temporal_attentions", position), hidden_states, num_frames)
        return hidden_states

    def run_resnet(self, index: int, hidden_states: torch.Tensor, embedding: Embedding) -> torch.Tensor:
        """Run residual layer `index` alone."""
        own = embedding if isinstance(embedding, torch.Tensor) else embedding[index]
        return self.run(self.layer("resnets", index), hidden_states, own)

    def modulations(self, activated: torch.Tensor) -> list[Modulation]:
        """Return the `modulation` of every residual layer; `activated` is the embedding after its silu."""
        layers = (cast(ResidualLayer, self.layer("resnets", index)) for index in range(len(self.resnets)))
        return [layer.modulation(activated) for layer in layers]

    def layers_by_place(self) -> Iterator[tuple[tuple[str, int, int], tuple[str, int]]]:
        """Map (list, residual layer it follows, how many of its kind are between them) to (list, index) for each
        layer.

        The keys are the same in a block with more or fewer attention layers.
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
        """Call a layer, and recompute it in the backward pass if gradient checkpointing is on."""
        if torch.is_grad_enabled() and self.gradient_checkpointing:
            if isinstance(condition, TextConditioning):
                # Reentrant checkpointing computes gradients only for tensors among the arguments.
                return self._gradient_checkpointing_func(
                    _OnTensors(layer, condition), hidden_states, *condition.tensors()
                )
            return self._gradient_checkpointing_func(layer, hidden_states, condition)
        return layer(hidden_states, condition)

    def zero_init_(self) -> None:
        """Zero the last layer of every residual branch; borrowed layers are not changed here."""
        for resnet in self.resnets:
            if resnet is not None:
                zero_(cast(ResidualLayer, resnet).conv2)
        for attention in (*self.attentions, *self.temporal_attentions):
            if attention is not None:
                cast("SpatialAttention | TemporalAttention", attention).zero_init_()


def repeat_for_frames(embedding: Embedding, num_frames: int) -> Embedding:
    """Repeat the embedding of each sample for its frames: `(B, D)` → `(B F, D)`.

    Raises:
        ValueError: there are several frames, and the embedding is one of `NestedUNetModel.embed_timesteps`.
    """
    if num_frames == 1:
        return embedding
    if not isinstance(embedding, torch.Tensor):
        raise ValueError("The embeddings of `embed_timesteps` are for images; pass the timesteps of clips themselves.")
    return embedding.repeat_interleave(num_frames, dim=0)


class DownBlock(ResolutionBlock):
    """Block of the encoder: `num_layers` residual layers, then a convolution that halves the sides (or frames).

    Args:
        settings: settings of the level.
        in_channels: input channels.
        out_channels: output channels.
        num_layers: number of residual layers.
        attentions: numbers of attention layers after each residual layer.
        downsample: whether to end with a stride-2 convolution.
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
        embedding: Embedding,
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
    """Block of the decoder: one residual layer per skip connection, then upsampling that doubles the sides (or
    frames).

    Args:
        settings: settings of the level.
        in_channels: input channels.
        skip_channels: channels of the skip connections, in the order in which they are used.
        out_channels: output channels.
        attentions: numbers of attention layers after each residual layer.
        upsample: whether to end with nearest-neighbour upsampling and a convolution.
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
        embedding: Embedding,
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
        embedding: Embedding,
        text: TextConditioning | None = None,
        num_frames: int = 1,
    ) -> torch.Tensor:
        """`(B, C, H, W)` → `(B, C, H, W)`."""
        embedding = repeat_for_frames(embedding, num_frames)
        hidden_states = self.run_resnet(0, hidden_states, embedding)
        hidden_states = self.run(self.layer("attentions", 0), hidden_states, text)
        return self.run_resnet(1, hidden_states, embedding)
