# SPDX-License-Identifier: Apache-2.0
"""Attention as the published models have it: one query, two separate softmaxes (own tokens, text), summed."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from diffusers.models.attention import AttentionModuleMixin
from diffusers.models.attention_dispatch import dispatch_attention_fn
from diffusers.models.embeddings import apply_rotary_emb
from torch import nn

from .forward_inputs import TextConditioning


def zero_(layer: nn.Module | None) -> None:
    """Set every parameter of a layer to zero; `None` has none."""
    if layer is not None:
        for parameter in layer.parameters():
            nn.init.zeros_(parameter)


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
        """Attend.

        Args:
            attn: the layer whose projections are used.
            hidden_states: `(B, N, C)`, normalised tokens.
            text: what to attend to besides; `None` for self-attention alone. It may have B / F rows, each for the F
                rows of a clip's frames.
            attention_mask: `(B, N)`, True for the own tokens to look at; `None` for all.
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
            # All frames of a clip ask together, so that its text need not be copied for each of them.
            together = query.reshape(key.shape[0], -1, *query.shape[2:])
            attended = attended + self.dispatch(together, key, value, text.attention_mask).reshape(query.shape)
        return attn.to_out[1](attn.to_out[0](attended.flatten(2)))

    def dispatch(
        self, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, mask: torch.Tensor | None
    ) -> torch.Tensor:
        """softmax(q k^T / sqrt(d)) v on `(B, N, heads, d)`; `mask` `(B, L)` is True where it may look."""
        return dispatch_attention_fn(
            query,
            key,
            value,
            attn_mask=None if mask is None else mask[:, None, None, :],
            backend=self._attention_backend,
            parallel_config=self._parallel_config,
        )


class FeedForward(nn.Module):
    """norm → linear to 4x → exact GELU → linear, on `(B, N, C)`; the norm is the caller's kind."""

    def __init__(self, channels: int, norm: nn.Module) -> None:
        super().__init__()
        self.norm = norm
        self.proj_in = nn.Linear(channels, 4 * channels)
        self.proj_out = nn.Linear(4 * channels, channels)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        """Without the norm, which needs the caller's layout: `(B, N, C)` → `(B, N, C)`."""
        return self.proj_out(F.gelu(self.proj_in(tokens)))


class MatryoshkaAttention(nn.Module, AttentionModuleMixin):
    """Projections of one attention among tokens, and from them to the text.

    Args:
        channels: C, a multiple of `num_heads`.
        num_heads: heads; each has C / num_heads neighbouring channels.
        text_dim: width of the text to attend to, or `None`.
        norm_eps: of the layer norm before the text's projections.
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
        # Position among the attention layers with text; the model sets it.
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
        """Query, key and value, each `(B, N, C)`."""
        if self.fused_projections:
            return tuple(self.to_qkv(tokens).chunk(3, dim=-1))
        return self.to_q(tokens), self.to_k(tokens), self.to_v(tokens)

    def split_heads(self, states: torch.Tensor) -> torch.Tensor:
        """`(B, N, C)` → `(B, N, heads, C / heads)`."""
        return states.unflatten(-1, (self.heads, -1))

    def text_key_value(self, text: TextConditioning) -> tuple[torch.Tensor, torch.Tensor]:
        """Key and value of the text, `(B, L, heads, d)`: the precomputed ones if there are."""
        if text.keys_values is not None:
            return text.keys_values[self.text_slot]
        if self.norm_encoder is None or self.add_k_proj is None or self.add_v_proj is None:
            raise ValueError("This attention layer was built without text (`text_dim` is None).")
        normed = self.norm_encoder(text.hidden_states)
        return self.split_heads(self.add_k_proj(normed)), self.split_heads(self.add_v_proj(normed))


class SpatialAttention(nn.Module):
    """Attention among the pixels of a feature map, and from them to the text, then optionally a feed-forward part.

    Args:
        channels: of the feature map.
        num_heads: heads.
        text_dim: width of the text, or `None`.
        norm_num_groups: of the group norms.
        norm_eps: of all norms.
        has_ffn: follow with a feed-forward part.
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
                "(`attention_norm_num_groups`); the channels must be a multiple of it."
            )
        self.norm = nn.GroupNorm(norm_num_groups, channels, eps=norm_eps)
        self.attn = MatryoshkaAttention(channels, num_heads, text_dim, norm_eps)
        self.ff = FeedForward(channels, nn.GroupNorm(norm_num_groups, channels, eps=norm_eps)) if has_ffn else None

    def forward(self, hidden_states: torch.Tensor, text: TextConditioning | None = None) -> torch.Tensor:
        """`(B, C, H, W)` → `(B, C, H, W)`."""
        attended = self.attn(self.norm(hidden_states).flatten(2).transpose(1, 2), text)
        hidden_states = hidden_states + attended.transpose(1, 2).unflatten(2, hidden_states.shape[2:])
        if self.ff is not None:
            tokens = self.ff.norm(hidden_states).flatten(2).transpose(1, 2)
            hidden_states = hidden_states + self.ff(tokens).transpose(1, 2).unflatten(2, hidden_states.shape[2:])
        return hidden_states

    def zero_init_(self) -> None:
        """Zero what adds to the residual stream (ml-mdm's zero_module)."""
        zero_(self.attn.to_out[0])
        if self.ff is not None:
            zero_(self.ff.proj_out)


class TextSelfAttention(nn.Module):
    """Attention among the tokens of a prompt, followed by a feed-forward part.

    Args:
        channels: width of the tokens.
        num_heads: heads.
        norm_eps: of the layer norms.
    """

    def __init__(self, channels: int, num_heads: int, norm_eps: float) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(channels, eps=norm_eps)
        self.attn = MatryoshkaAttention(channels, num_heads, None, norm_eps)
        self.ff = FeedForward(channels, nn.LayerNorm(channels, eps=norm_eps))

    def forward(self, tokens: torch.Tensor, attention_mask: torch.Tensor | None = None) -> torch.Tensor:
        """`(B, L, C)` → `(B, L, C)`; `attention_mask` `(B, L)` is True for the tokens to look at."""
        tokens = tokens + self.attn(self.norm(tokens), attention_mask=attention_mask)
        return tokens + self.ff(self.ff.norm(tokens))
