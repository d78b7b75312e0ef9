# SPDX-License-Identifier: Apache-2.0
"""One level: a U-Net whose middle is the level inside it, and its embedding of timestep and micro-conditioning."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Literal, cast

import torch
import torch.nn.functional as F
from diffusers.models.embeddings import TimestepEmbedding, get_timestep_embedding
from torch import nn

from .blocks import BlockAttentions, BlockSettings, DownBlock, LayerBorrower, MidBlock, ResolutionBlock, UpBlock
from .forward_inputs import Embedding, Modulation, StepEmbedding, TextConditioning
from .frames import on_tiled_frames
from .layers import add, norm_silu, zero_
from .level_config import LevelConfig
from .level_slicing import decode_sliced, encode_sliced

# A micro-condition other than "scale" is in [0, 1] and is scaled to the range of timesteps (ml-mdm).
_MICRO_CONDITIONING_STRETCH = 1000
# Keeps a constant input from becoming NaN; the standard deviation of noise is always much larger.
_SMALLEST_STD = 1e-6


def sinusoids(values: torch.Tensor, dim: int, dtype: torch.dtype) -> torch.Tensor:
    """Embed scalars `(B,)` as `(B, dim)`: sines, then cosines, with frequencies 10000^(-i / (dim / 2))."""
    return get_timestep_embedding(values, dim, flip_sin_to_cos=False, downscale_freq_shift=0).to(dtype)


class LevelEmbedding(LayerBorrower):
    """Embedding of a level's timestep and micro-conditioning, each with its own weights unless they are shared.

    Args:
        config: config of the level.
        time_embed_dim: width D of the result; the sinusoids have D / 4.
    """

    def __init__(self, config: LevelConfig, time_embed_dim: int) -> None:
        super().__init__()
        self.sinusoid_dim = time_embed_dim // 4
        self.defaults = dict(zip(config.micro_conditioning_keys, config.micro_conditioning_defaults, strict=True))
        self.time_embedding = TimestepEmbedding(self.sinusoid_dim, time_embed_dim)
        self.micro_embeddings = nn.ModuleDict(
            {key: TimestepEmbedding(self.sinusoid_dim, time_embed_dim) for key in config.micro_conditioning_keys}
        )

    def forward(
        self, timestep: torch.Tensor, micro_conditioning: Mapping[str, torch.Tensor], pooled: torch.Tensor | None
    ) -> torch.Tensor:
        """Return the sum of the embeddings of timestep and micro-conditioning, and of `pooled` (text, class).

        Args:
            timestep: `(B,)`, 0 … num_train_timesteps - 1.
            micro_conditioning: values `(B,)` by key; missing ones have the level's defaults.
            pooled: `(B, D)` or None.

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
        """Use the layers of another level's embedding; this level keeps its own default values."""
        self.borrow(inner.layer("time_embedding"), "time_embedding")
        for key in self.defaults:
            if key in inner.defaults:
                self.borrow(inner.layer("micro_embeddings", key), "micro_embeddings", key)


def embeddings_of(blocks: Sequence[ResolutionBlock], embedding: Embedding) -> list[Embedding]:
    """Return the embedding for each block: the same for all, or the modulations of its own residual layers."""
    if isinstance(embedding, torch.Tensor):
        return [embedding] * len(blocks)
    parts: list[Embedding] = []
    start = 0
    for block in blocks:
        parts.append(embedding[start : start + len(block.resnets)])
        start += len(block.resnets)
    return parts


class LevelEncoder(nn.Module):
    """Encoder of a level: from its pixels to its coarsest features, and to the features for the level inside.

    With `is_closed`, the level inside gets no features: gradients need not run through it to an adapter that is zero.

    Frames of clips are part of the batch, here and in `LevelDecoder`: in the shape `(B, C, H, W)`, B is the number of
    samples times their frames. Embedding and text have one entry per sample.

    Args:
        config: config of the level.
        settings: settings of its blocks.
        in_channels: channels of the noisy image.
        inner_channels: channels of the level inside at its finest resolution, None for level 0.
    """

    def __init__(
        self, config: LevelConfig, settings: BlockSettings, in_channels: int, inner_channels: int | None
    ) -> None:
        super().__init__()
        channels = config.block_out_channels
        self.normalize_input = config.normalize_input
        self.patch_size = config.patch_size
        self.tiled_adapters = config.tiled_adapters
        self.frame_ratio = config.frame_ratio
        self.conv_in = nn.Conv2d(in_channels * config.patch_size**2, channels[0], 3, padding=1)
        last = len(channels) - 1
        self.down_blocks = nn.ModuleList(
            [
                DownBlock(
                    settings,
                    channels[max(index - 1, 0)],
                    channels[index],
                    config.layers_per_block[index],
                    BlockAttentions.at_resolution(config, index),
                    downsample=index < last,
                )
                for index in range(len(channels))
            ]
        )
        self.in_adapter = nn.Conv2d(channels[-1], inner_channels, 3, padding=1) if inner_channels else None
        self.is_closed = False

    def forward(
        self,
        sample: torch.Tensor,
        features: torch.Tensor | None,
        embedding: Embedding,
        text: TextConditioning | None,
        num_frames: int = 1,
    ) -> tuple[torch.Tensor, tuple[torch.Tensor, ...], torch.Tensor | None]:
        """Run the encoder.

        Args:
            sample: `(B, in_channels, H, W)`, noisy.
            features: `(B', C_0, H / p, W / p)` with B' <= B from the level outside, or None; missing samples count
                as zero.
            embedding: embedding of timestep and conditions for the blocks of the encoder.
            text: the prompt.
            num_frames: frames of each sample.

        Returns:
            The coarsest features, the skip connections in the order in which they were made, and the features for the
            level inside.
        """
        if self.normalize_input:
            std = sample.float().std(dim=(1, 2, 3), keepdim=True).clamp(min=_SMALLEST_STD)
            sample = sample / std.to(sample.dtype)
        hidden_states = self.conv_in(sample if self.patch_size == 1 else F.pixel_unshuffle(sample, self.patch_size))
        if features is not None:
            num_missing = hidden_states.shape[0] - features.shape[0]
            # Padded by nothing, features would be copied.
            padded = F.pad(features, (0, 0, 0, 0, 0, 0, 0, num_missing)) if num_missing else features
            hidden_states = add(hidden_states, padded)
        skips: tuple[torch.Tensor, ...] = (hidden_states,)
        embeddings = embeddings_of(self.blocks, embedding)
        for index, (block, own) in enumerate(zip(self.down_blocks, embeddings, strict=True)):
            frames_here = num_frames >> index if self.frame_ratio > 1 else num_frames
            hidden_states, block_skips = block(hidden_states, own, text, frames_here)
            skips += block_skips
        return hidden_states, skips, self.towards_inner(hidden_states, num_frames // self.frame_ratio)

    @property
    def blocks(self) -> list[ResolutionBlock]:
        """The blocks in the order in which they run."""
        return cast("list[ResolutionBlock]", list(self.down_blocks))

    def towards_inner(self, hidden_states: torch.Tensor, num_frames: int) -> torch.Tensor | None:
        """Return the features for the level inside, which has `num_frames` frames; none if it is closed."""
        if self.in_adapter is None or self.is_closed:
            return None
        if self.tiled_adapters:
            return on_tiled_frames(self.in_adapter, hidden_states, num_frames)
        return self.in_adapter(hidden_states)


class LevelDecoder(nn.Module):
    """Decoder of a level: from its coarsest features and the level inside to its prediction.

    Args:
        config: config of the level.
        settings: settings of its blocks.
        out_channels: channels of the prediction.
        inner_channels: channels of the level inside at its finest resolution, None for level 0.
    """

    def __init__(
        self, config: LevelConfig, settings: BlockSettings, out_channels: int, inner_channels: int | None
    ) -> None:
        super().__init__()
        channels = config.block_out_channels
        self.tiled_adapters = config.tiled_adapters
        self.frame_ratio = config.frame_ratio
        self.out_adapter = nn.Conv2d(inner_channels, channels[-1], 3, padding=1) if inner_channels else None
        self.mid_block = MidBlock(settings, channels[-1]) if config.has_mid_block else None
        self.up_blocks = nn.ModuleList()
        for index in reversed(range(len(channels))):
            before = channels[min(index + 1, len(channels) - 1)]
            # The last skip connection of a resolution is the input to it: the resampled features, or conv_in's output.
            skip_channels = [channels[index]] * config.layers_per_block[index] + [channels[max(index - 1, 0)]]
            self.up_blocks.append(
                UpBlock(
                    settings,
                    before,
                    skip_channels,
                    channels[index],
                    BlockAttentions.at_resolution(config, index),
                    upsample=index > 0,
                )
            )
        self.norm_out = nn.GroupNorm(settings.norm_num_groups, channels[0], eps=settings.norm_eps)
        self.patch_size = config.patch_size
        self.conv_out = nn.Conv2d(channels[0], out_channels * config.patch_size**2, 3, padding=1)

    def forward(
        self,
        hidden_states: torch.Tensor,
        skips: tuple[torch.Tensor, ...],
        inner_features: torch.Tensor | None,
        embedding: Embedding,
        text: TextConditioning | None,
        num_frames: int = 1,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Run the decoder.

        Args:
            hidden_states: `(B, C_last, h, w)`, the encoder's coarsest features.
            skips: skip connections of the encoder, in the order in which it returned them.
            inner_features: `(B', c_0, h, w)` with B' >= B of the level inside, or `None` for level 0.
            embedding: likewise for the blocks of the decoder.
            text: the prompt.
            num_frames: frames of each sample of the prediction.

        Returns:
            The prediction `(B, out_channels, H, W)` and the features from which it was made, `(B, C_0, H / p, W / p)`.
        """
        frames_here = num_frames // self.frame_ratio
        if inner_features is not None:
            inner_features = inner_features[: hidden_states.shape[0]]
            hidden_states = add(self.from_inner(inner_features, frames_here), hidden_states)
        embeddings, remaining = embeddings_of(self.blocks, embedding), skips
        if self.mid_block is not None:
            hidden_states = self.mid_block(hidden_states, embeddings.pop(0), text, frames_here)
        for index, (block, own) in enumerate(zip(self.up_blocks, embeddings, strict=True)):
            num_layers = len(cast(UpBlock, block).resnets)
            steps = index if self.frame_ratio > 1 else 0
            used = remaining[: -num_layers - 1 : -1]
            hidden_states = block(hidden_states, used, own, text, frames_here << steps)
            remaining = remaining[:-num_layers]
        prediction = self.conv_out(norm_silu(self.norm_out, hidden_states))
        return prediction if self.patch_size == 1 else F.pixel_shuffle(prediction, self.patch_size), hidden_states

    @property
    def blocks(self) -> list[ResolutionBlock]:
        """The blocks in the order in which they run."""
        blocks = [block for block in (self.mid_block, *self.up_blocks) if block is not None]
        return cast("list[ResolutionBlock]", blocks)

    def from_inner(self, features: torch.Tensor, num_frames: int) -> torch.Tensor:
        """Return what the level inside, which has `num_frames` frames, adds to the coarsest features."""
        adapter = cast(nn.Module, self.out_adapter)
        return on_tiled_frames(adapter, features, num_frames) if self.tiled_adapters else adapter(features)


class Level(nn.Module):
    """One level. All calls go through `forward`, because hooks for offloading, sharding and device maps wrap only
    that.

    Args:
        config: config of the level.
        settings: settings of its blocks.
        in_channels: channels of the noisy image.
        out_channels: channels of the prediction.
        inner_channels: channels of the level inside at its finest resolution, None for level 0.
    """

    def __init__(
        self,
        config: LevelConfig,
        settings: BlockSettings,
        in_channels: int,
        out_channels: int,
        inner_channels: int | None,
    ) -> None:
        super().__init__()
        self.is_sliced = False
        self.encoder: LevelEncoder
        self.decoder: LevelDecoder
        self.embedding = LevelEmbedding(config, settings.time_embed_dim)
        self.encoder = LevelEncoder(config, settings, in_channels, inner_channels)
        self.decoder = LevelDecoder(config, settings, out_channels, inner_channels)
        # After adding a level, the model must compute the same as before: the adapters add nothing until they are
        # trained.
        for adapter in (self.encoder.in_adapter, self.decoder.out_adapter):
            zero_(adapter)

    def forward(self, part: Literal["embed", "encode", "decode"], *inputs: Any) -> Any:
        """Run `embed`, `encode` or `decode`, depending on `part`; with level slicing, on one sample at a time."""
        if part == "embed":
            return self.embed(*inputs)
        if self.is_sliced:
            if part == "decode":
                return decode_sliced(self.decode, *inputs)
            *others, _ = inputs  # modulations are those of whole batches
            return encode_sliced(self.encode, *others)
        return self.encode(*inputs) if part == "encode" else self.decode(*inputs)

    def embed(
        self, timestep: torch.Tensor, micro_conditioning: Mapping[str, torch.Tensor], pooled: torch.Tensor | None
    ) -> list[Modulation]:
        """Return what every residual layer makes of timestep and conditions, in the order in which the layers run."""
        activated = F.silu(self.embedding(timestep, micro_conditioning, pooled))
        blocks = self.encoder.blocks + self.decoder.blocks
        return [modulation for block in blocks for modulation in block.modulations(activated)]

    def encode(
        self,
        sample: torch.Tensor,
        features: torch.Tensor | None,
        timestep: torch.Tensor,
        micro_conditioning: Mapping[str, torch.Tensor],
        pooled: torch.Tensor | None,
        text: TextConditioning | None,
        num_frames: int = 1,
        modulations: tuple[Modulation, ...] | None = None,
    ) -> tuple[torch.Tensor, tuple[torch.Tensor, ...], torch.Tensor | None, Embedding]:
        """Embed timestep and conditions, unless `modulations` has the result of `embed` for them, then run the
        encoder; returns what `decode` needs.
        """
        if modulations is None:
            # Every residual layer begins with the same activation.
            embedding = F.silu(self.embedding(timestep, micro_conditioning, pooled)).to(sample.dtype)
            return *self.encoder(sample, features, embedding, text, num_frames), embedding
        count = sum(len(block.resnets) for block in self.encoder.blocks)
        return *self.encoder(sample, features, modulations[:count], text, num_frames), modulations[count:]

    def decode(
        self,
        hidden_states: torch.Tensor,
        skips: tuple[torch.Tensor, ...],
        inner_features: torch.Tensor | None,
        embedding: Embedding,
        text: TextConditioning | None,
        num_frames: int = 1,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Run the decoder; returns prediction and features."""
        return self.decoder(hidden_states, skips, inner_features, embedding, text, num_frames)

    @torch.no_grad()
    def zero_init_(self) -> None:
        """Zero the output, the adapters and the last layer of every residual branch (ml-mdm's zero_module)."""
        for conv in (self.decoder.conv_out, self.encoder.in_adapter, self.decoder.out_adapter):
            zero_(conv)
        for module in self.modules():
            if isinstance(module, (DownBlock, UpBlock, MidBlock)):
                module.zero_init_()


def embed_steps(
    levels: Iterable[nn.Module],
    timesteps: torch.Tensor,
    batch_size: int,
    micro_conditioning: Mapping[str, torch.Tensor],
    pooled: torch.Tensor | None,
) -> list[StepEmbedding]:
    """Return what all levels make of several timesteps `(S,)` and of the conditions of a batch, for each step."""
    steps = (timesteps.shape[0], batch_size)
    times = timesteps.repeat_interleave(batch_size)
    micro = {key: value.repeat(steps[0]) for key, value in micro_conditioning.items()}
    conditions = None if pooled is None else pooled.repeat(steps[0], 1)

    def by_step(values: torch.Tensor) -> Sequence[torch.Tensor]:
        # Copies: compiled models make other graphs for views into one tensor, depending on where they begin.
        unbind_copy: Any = torch.unbind_copy  # whose type in torch says that it returns nothing
        return unbind_copy(values.unflatten(0, steps))

    by_level = [
        [list(zip(*map(by_step, modulation), strict=True)) for modulation in level("embed", times, micro, conditions)]
        for level in levels
    ]
    return [
        StepEmbedding(own_times, tuple(tuple(layer[step] for layer in level) for level in by_level))
        for step, own_times in enumerate(by_step(times))
    ]
