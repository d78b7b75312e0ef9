# SPDX-License-Identifier: Apache-2.0
"""The layers of a block: residual layers, upsampling, and attention.

Attention is that of the published models: one query and two separate softmaxes (self, text), whose outputs are added.
Parameters have the names of diffusers' `ResnetBlock2D`, `Upsample2D` and `Attention`. Without gradients, layers modify
their intermediate results in place, which saves memory and memory traffic.
"""

from __future__ import annotations

from typing import TypeGuard

import torch
import torch.nn.functional as F
from diffusers.models.attention import AttentionModuleMixin
from diffusers.models.attention_dispatch import dispatch_attention_fn
from diffusers.models.embeddings import apply_rotary_emb
from torch import nn

from .forward_inputs import Modulation, TextConditioning


def zero_(layer: nn.Module | None) -> None:
    """Set all parameters of a layer to zero; None is ignored."""
    if layer is not None:
        for parameter in layer.parameters():
            nn.init.zeros_(parameter)


# Feature maps in channels_last with more pixels than this are normalised by `_per_channel`: PyTorch's CPU kernel adds
# up the squares sequentially, with an error of 1e-3 at 1024 x 1024 pixels (5e-6 at 32 x 32).
_MOST_PIXELS_AT_ONCE = 32 * 32
# Batches with at least this many pixels are upsampled by `upsampling_kernel`.
_FEWEST_PIXELS = 512
# How many numbers are squared at a time, so that they stay in the cache of a core.
_NUMBERS_AT_A_TIME = 2**17


def add(fresh: torch.Tensor, other: torch.Tensor) -> torch.Tensor:
    """Add two tensors, in place if possible; the first must not be used elsewhere."""
    if torch.is_grad_enabled() or fresh.dtype != other.dtype:
        return fresh + other
    return fresh.add_(other)


def normalize(
    norm: nn.Module,
    hidden_states: torch.Tensor,
    scale: torch.Tensor | None = None,
    shift: torch.Tensor | None = None,
) -> torch.Tensor:
    """Return norm(x) (1 + scale) + shift, in new memory.

    Args:
        norm: a group norm.
        hidden_states: x, `(B, C, H, W)`.
        scale: `(B, C)`; None for neither scale nor shift.
        shift: `(B, C)`, or None.
    """
    if _loses_digits(norm, hidden_states):
        factor, offset = _per_channel(norm, hidden_states)
        if scale is not None and shift is not None:
            factor, offset = factor * (1 + scale), torch.addcmul(shift, offset, 1 + scale)
        return torch.addcmul(offset[..., None, None], hidden_states, factor[..., None, None])
    normed = norm(hidden_states)
    if scale is None or shift is None:
        return normed
    stretch, offset = 1 + scale[..., None, None], shift[..., None, None]
    if torch.is_grad_enabled() or torch.compiler.is_compiling() or normed.dtype != scale.dtype:
        return torch.addcmul(offset, normed, stretch)
    return torch.addcmul(offset, normed, stretch, out=normed)


def norm_silu(norm: nn.Module, hidden_states: torch.Tensor, *scale_and_shift: torch.Tensor) -> torch.Tensor:
    """Return silu(norm(x) (1 + scale) + shift); arguments as in `normalize`."""
    return F.silu(normalize(norm, hidden_states, *scale_and_shift), inplace=not torch.is_grad_enabled())


def _loses_digits(norm: nn.Module, hidden_states: torch.Tensor) -> TypeGuard[nn.GroupNorm]:
    """Return whether PyTorch's kernel would be inaccurate (see `_MOST_PIXELS_AT_ONCE`) and no gradients needed."""
    return (
        not torch.is_grad_enabled()
        and not torch.compiler.is_compiling()
        and hidden_states.device.type == "cpu"
        and hidden_states.dtype == torch.float32
        and hidden_states.shape[-2] * hidden_states.shape[-1] > _MOST_PIXELS_AT_ONCE
        and not hidden_states.is_contiguous()
        and _is_plain(norm, nn.GroupNorm)
    )


def _is_plain(layer: nn.Module, kind: type[nn.Module]) -> bool:
    """Return whether a layer can be computed directly from its weights, without an adapter or a hook (offloading)."""
    return type(layer) is kind and "forward" not in layer.__dict__


def _per_channel(norm: nn.GroupNorm, hidden_states: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Return group norm as a factor and an offset per channel, `(B, C)` each.

    Sums over pixels use pairwise summation, which stays accurate for any number of pixels.
    """
    channels, height, width = hidden_states.shape[1:]
    pixels = hidden_states.permute(0, 2, 3, 1)
    squares = []
    lines = max(1, _NUMBERS_AT_A_TIME // (width * channels))
    for sample in pixels.split(max(1, lines // height)):
        parts = [part.square().sum(dim=(1, 2)) for part in sample.split(min(lines, height), dim=1)]
        squares.append(torch.stack(parts).sum(dim=0))
    count = height * width * (channels // norm.num_groups)
    mean = pixels.sum(dim=(1, 2)).unflatten(1, (norm.num_groups, -1)).sum(dim=2, keepdim=True) / count
    square = torch.cat(squares).unflatten(1, (norm.num_groups, -1)).sum(dim=2, keepdim=True) / count
    spread = (square - mean.square()).clamp(min=0).add(norm.eps).rsqrt()
    factor = spread * norm.weight.unflatten(0, (norm.num_groups, -1))
    return factor.flatten(1), (norm.bias.unflatten(0, (norm.num_groups, -1)) - mean * factor).flatten(1)


def as_tokens(hidden_states: torch.Tensor) -> torch.Tensor:
    """Reshape `(B, C, H, W)` to `(B, H W, C)`, without a copy if the memory format is channels_last."""
    return hidden_states.permute(0, 2, 3, 1).flatten(1, 2)


class ResidualLayer(nn.Module):
    """norm → silu → 3 x 3 → norm, scaled and shifted by the embedding → silu → 3 x 3, added to the input.

    Args:
        in_channels: channels of the input.
        out_channels: channels of the output; if they differ, a 1 x 1 convolution converts the input.
        embed_dim: width of the embedding.
        norm_num_groups: groups of both norms.
        norm_eps: epsilon of both norms.
        dropout: dropout before the second convolution.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        embed_dim: int,
        norm_num_groups: int,
        norm_eps: float,
        dropout: float,
    ) -> None:
        super().__init__()
        self.norm1 = nn.GroupNorm(norm_num_groups, in_channels, eps=norm_eps)
        self.conv1 = nn.Conv2d(in_channels, out_channels, 3, padding=1)
        self.time_emb_proj = nn.Linear(embed_dim, 2 * out_channels)
        self.norm2 = nn.GroupNorm(norm_num_groups, out_channels, eps=norm_eps)
        self.dropout = nn.Dropout(dropout)
        self.conv2 = nn.Conv2d(out_channels, out_channels, 3, padding=1)
        self.conv_shortcut = nn.Conv2d(in_channels, out_channels, 1) if in_channels != out_channels else None

    def modulation(self, activated: torch.Tensor) -> Modulation:
        """The embedding after its silu, `(B, embed_dim)` → scale and shift of the second norm, `(B, out_channels)`."""
        return self.time_emb_proj(activated).chunk(2, dim=-1)

    def forward(self, hidden_states: torch.Tensor, embedding: torch.Tensor | Modulation) -> torch.Tensor:
        """`(B, in_channels, H, W)` and the activated embedding, or its `modulation` → `(B, out_channels, H, W)`."""
        scale, shift = embedding if isinstance(embedding, tuple) else self.modulation(embedding)
        residual = self.conv1(norm_silu(self.norm1, hidden_states))
        residual = self.conv2(self.dropout(norm_silu(self.norm2, residual, scale, shift)))
        return add(residual, hidden_states if self.conv_shortcut is None else self.conv_shortcut(hidden_states))


class Upsample(nn.Module):
    """Doubles the sides: repeats each pixel in a square of four, then applies a 3 x 3 convolution.

    Args:
        channels: channels of input and output.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        """`(B, C, H, W)` → `(B, C, 2 H, 2 W)`."""
        if self.saves_operations(hidden_states):
            kernel = upsampling_kernel(self.conv.weight)
            return F.conv_transpose2d(hidden_states, kernel, self.conv.bias, stride=2, padding=1)
        return self.conv(F.interpolate(hidden_states, scale_factor=2.0, mode="nearest"))

    def saves_operations(self, hidden_states: torch.Tensor) -> bool:
        """Return whether `upsampling_kernel` is faster: for many pixels, on CPUs (not measured on other devices)."""
        is_eager_on_cpu = hidden_states.device.type == "cpu" and not torch.compiler.is_compiling()
        return is_eager_on_cpu and hidden_states[:, 0].numel() >= _FEWEST_PIXELS and _is_plain(self.conv, nn.Conv2d)


def upsampling_kernel(weight: torch.Tensor) -> torch.Tensor:
    """Return the kernel `(C_in, C_out, 4, 4)` of a transposed convolution with stride 2 that equals repeating pixels
    and convolving them with `weight`, `(C_out, C_in, 3, 3)`. It needs 2.25 times fewer operations, since weights that
    apply to copies of the same pixel are added first.
    """
    lines = weight.permute(1, 2, 3, 0)  # (C_in, 3, 3, C_out)
    for side in (1, 2):
        first, second, third = lines.unbind(side)
        lines = torch.stack((third, second + third, first + second, first), dim=side)
    return lines.permute(0, 3, 1, 2)


class MatryoshkaAttnProcessor:
    """Self-attention plus attention to the text with the same query, through diffusers' attention backends."""

    _attention_backend = None
    _parallel_config = None

    def __call__(
        self,
        attn: MatryoshkaAttention,
        hidden_states: torch.Tensor,
        text: TextConditioning | None = None,
        attention_mask: torch.Tensor | None = None,
        rotary: tuple[torch.Tensor, torch.Tensor] | None = None,
    ) -> torch.Tensor:
        """Apply self-attention and attention to the text.

        Args:
            attn: the layer whose projections are used.
            hidden_states: `(B, N, C)`, normalised tokens.
            text: the text to attend to; None for self-attention only. For clips it can have B / F entries, one for all
                F frames of a clip.
            attention_mask: `(B, N)`, True for tokens that self-attention attends to; None for all.
            rotary: cosines and sines `(N, C / heads)` of the tokens' positions, by which neighbouring pairs of
                channels of query and key are rotated; `None` for no positions.

        Returns:
            `(B, N, C)`, projected out.
        """
        query, key, value = (attn.split_heads(states) for states in attn.project(hidden_states))
        if rotary is not None:
            query, key = (apply_rotary_emb(states, rotary, sequence_dim=1) for states in (query, key))
        attended = self.dispatch(query, key, value, attention_mask)
        if text is not None and attn.add_k_proj is not None:
            key, value = attn.text_key_value(text)
            # The queries of all frames of a clip are joined, so that its text need not be copied for each frame.
            together = query.reshape(key.shape[0], -1, *query.shape[2:])
            attended = attended + self.dispatch(together, key, value, text.attention_mask).reshape(query.shape)
        return attn.to_out[1](attn.to_out[0](attended.flatten(2)))

    def dispatch(
        self, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, mask: torch.Tensor | None
    ) -> torch.Tensor:
        """Compute softmax(q k^T / sqrt(d)) v on `(B, N, heads, d)`; `mask` `(B, L)` is True for keys to attend to."""
        return dispatch_attention_fn(
            query,
            key,
            value,
            attn_mask=None if mask is None else mask[:, None, None, :],
            backend=self._attention_backend,
            parallel_config=self._parallel_config,
        )


class FeedForward(nn.Module):
    """Feed-forward part: norm → linear to 4x → exact GELU → linear, on `(B, N, C)`; the caller passes the norm."""

    def __init__(self, channels: int, norm: nn.Module) -> None:
        super().__init__()
        self.norm = norm
        self.proj_in = nn.Linear(channels, 4 * channels)
        self.proj_out = nn.Linear(4 * channels, channels)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        """Apply everything except the norm, which needs the caller's layout: `(B, N, C)` → `(B, N, C)`."""
        return self.proj_out(F.gelu(self.proj_in(tokens)))


class MatryoshkaAttention(nn.Module, AttentionModuleMixin):
    """Projections of an attention layer: self-attention, and attention to the text.

    Args:
        channels: C, a multiple of `num_heads`.
        num_heads: number of heads; each has C / num_heads neighbouring channels.
        text_dim: width of the text features, None without text.
        norm_eps: epsilon of the layer norm before the projections of the text.
    """

    to_qkv: nn.Linear
    fused_projections: bool
    processor: MatryoshkaAttnProcessor
    _default_processor_cls = MatryoshkaAttnProcessor
    _available_processors = [MatryoshkaAttnProcessor]

    def __init__(self, channels: int, num_heads: int, text_dim: int | None, norm_eps: float) -> None:
        super().__init__()
        if channels % num_heads:
            raise ValueError(
                f"An attention layer of {channels} channels cannot have {num_heads} heads: the channels must be a "
                "multiple of `num_attention_heads`."
            )
        self.heads = num_heads
        self.use_bias = True
        self.to_q = nn.Linear(channels, channels)
        self.to_k = nn.Linear(channels, channels)
        self.to_v = nn.Linear(channels, channels)
        self.norm_encoder = nn.LayerNorm(text_dim, eps=norm_eps) if text_dim else None
        self.add_k_proj = nn.Linear(text_dim, channels) if text_dim else None
        self.add_v_proj = nn.Linear(text_dim, channels) if text_dim else None
        # diffusers' layout: LoRA targets "to_out.0".
        self.to_out = nn.ModuleList([nn.Linear(channels, channels), nn.Dropout(0.0)])
        # Index among the attention layers with text, set by the model.
        self.text_slot = 0
        self.processor = MatryoshkaAttnProcessor()

    def forward(
        self,
        hidden_states: torch.Tensor,
        text: TextConditioning | None = None,
        attention_mask: torch.Tensor | None = None,
        rotary: tuple[torch.Tensor, torch.Tensor] | None = None,
    ) -> torch.Tensor:
        """`(B, N, C)` → `(B, N, C)`; arguments as in `MatryoshkaAttnProcessor`."""
        return self.processor(self, hidden_states, text, attention_mask, rotary)

    def project(self, tokens: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """Return query, key and value, each `(B, N, C)`."""
        if self.fused_projections:
            return tuple(self.to_qkv(tokens).chunk(3, dim=-1))
        return self.to_q(tokens), self.to_k(tokens), self.to_v(tokens)

    def split_heads(self, states: torch.Tensor) -> torch.Tensor:
        """`(B, N, C)` → `(B, N, heads, C / heads)`."""
        return states.unflatten(-1, (self.heads, -1))

    def text_key_value(self, text: TextConditioning) -> tuple[torch.Tensor, torch.Tensor]:
        """Return key and value of the text, `(B, L, heads, d)`; precomputed ones are used if there are any."""
        if text.keys_values is not None:
            return text.keys_values[self.text_slot]
        if self.norm_encoder is None or self.add_k_proj is None or self.add_v_proj is None:
            raise ValueError("This attention layer was built without text (`text_dim` is None).")
        normed = self.norm_encoder(text.hidden_states)
        return self.split_heads(self.add_k_proj(normed)), self.split_heads(self.add_v_proj(normed))


class SpatialAttention(nn.Module):
    """Attention between the pixels of a feature map and to the text, optionally followed by a feed-forward part.

    Args:
        channels: channels of the feature map.
        num_heads: number of heads.
        text_dim: width of the text features, None without text.
        norm_num_groups: groups of the group norms.
        norm_eps: epsilon of all norms.
        has_ffn: whether a feed-forward part follows.
    """

    def __init__(
        self,
        channels: int,
        num_heads: int,
        text_dim: int | None,
        norm_num_groups: int,
        norm_eps: float,
        has_ffn: bool,
    ) -> None:
        super().__init__()
        if channels % norm_num_groups:
            raise ValueError(
                f"An attention layer of {channels} channels cannot be normalised in {norm_num_groups} groups "
                f"(`attention_norm_num_groups`); the channels must be a multiple of that."
            )
        self.norm = nn.GroupNorm(norm_num_groups, channels, eps=norm_eps)
        self.attn = MatryoshkaAttention(channels, num_heads, text_dim, norm_eps)
        self.ff = FeedForward(channels, nn.GroupNorm(norm_num_groups, channels, eps=norm_eps)) if has_ffn else None

    def forward(self, hidden_states: torch.Tensor, text: TextConditioning | None = None) -> torch.Tensor:
        """`(B, C, H, W)` → `(B, C, H, W)`."""
        attended = self.attn(as_tokens(normalize(self.norm, hidden_states)), text)
        # Not in place: the sum then always has the memory format of its first part, which compiled layers rely on.
        hidden_states = hidden_states + attended.transpose(1, 2).unflatten(2, hidden_states.shape[2:])
        if self.ff is not None:
            changed = self.ff(as_tokens(normalize(self.ff.norm, hidden_states)))
            hidden_states = hidden_states + changed.transpose(1, 2).unflatten(2, hidden_states.shape[2:])
        return hidden_states

    def zero_init_(self) -> None:
        """Zero the layers whose output is added to the residual stream (ml-mdm's zero_module)."""
        zero_(self.attn.to_out[0])
        if self.ff is not None:
            zero_(self.ff.proj_out)


class TextSelfAttention(nn.Module):
    """Self-attention between the tokens of a prompt, followed by a feed-forward part.

    Args:
        channels: width of the tokens.
        num_heads: number of heads.
        norm_eps: epsilon of the layer norms.
    """

    def __init__(self, channels: int, num_heads: int, norm_eps: float) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(channels, eps=norm_eps)
        self.attn = MatryoshkaAttention(channels, num_heads, None, norm_eps)
        self.ff = FeedForward(channels, nn.LayerNorm(channels, eps=norm_eps))

    def forward(self, tokens: torch.Tensor, attention_mask: torch.Tensor | None = None) -> torch.Tensor:
        """`(B, L, C)` → `(B, L, C)`; `attention_mask` `(B, L)` is True for tokens that are attended to."""
        tokens = tokens + self.attn(self.norm(tokens), attention_mask=attention_mask)
        return tokens + self.ff(self.ff.norm(tokens))
