# SPDX-License-Identifier: Apache-2.0
"""Temporal layers: attention between frames and learned resampling of frames (ml-mdm, Video).

In feature maps, frames are part of the batch: `(B F, C, H, W)`.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from diffusers.models.embeddings import get_1d_rotary_pos_embed
from torch import nn

from .frames import unfold_frames
from .layers import FeedForward, MatryoshkaAttention, zero_
from .level_config import TEMPORAL_HEAD_DIM

# Attention kernels put the batch in a dimension of their launch grid, whose size is at most 65535.
MAX_ATTENTION_ROWS = 32768


class TemporalAttention(nn.Module):
    """Attention between frames at every position of the feature map at half its size, followed by a feed-forward part.

    Args:
        channels: channels of the feature map, a multiple of 32.
        norm_eps: epsilon of the layer norms.
        has_rotary: whether queries and keys are rotated by the position of their frame.
    """

    def __init__(self, channels: int, norm_eps: float, has_rotary: bool) -> None:
        super().__init__()
        self.has_rotary = has_rotary
        self.down_conv = nn.Conv2d(channels, channels, 3, stride=2, padding=1)
        self.norm = nn.LayerNorm(channels, eps=norm_eps)
        self.attn = MatryoshkaAttention(channels, channels // TEMPORAL_HEAD_DIM, None, norm_eps)
        self.ff = FeedForward(channels, nn.LayerNorm(channels, eps=norm_eps))
        self.up_conv = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, hidden_states: torch.Tensor, num_frames: int) -> torch.Tensor:
        """Map `(B F, C, H, W)` to the same shape; H and W must be even."""
        reduced = self.down_conv(hidden_states)
        batch, (height, width) = reduced.shape[0] // num_frames, reduced.shape[2:]
        tokens = unfold_frames(reduced, num_frames).permute(0, 3, 4, 2, 1).flatten(0, 2)
        tokens = self.attend(tokens)
        reduced = tokens.unflatten(0, (batch, height, width)).permute(0, 3, 4, 1, 2).flatten(0, 1)
        return hidden_states + self.up_conv(F.interpolate(reduced, scale_factor=2.0, mode="nearest"))

    def attend(self, tokens: torch.Tensor) -> torch.Tensor:
        """Map `(B H W, F, C)` to the same shape; each position has its own sequence of frames."""
        rotary = None
        if self.has_rotary:
            positions = torch.arange(tokens.shape[1], device=tokens.device)
            rotary = get_1d_rotary_pos_embed(TEMPORAL_HEAD_DIM, positions, use_real=True)
        normed = self.norm(tokens).split(MAX_ATTENTION_ROWS)
        tokens = tokens + torch.cat([self.attn(part, rotary=rotary) for part in normed])
        return tokens + self.ff(self.ff.norm(tokens))

    def zero_init_(self) -> None:
        """Zero the layers whose output is added to the residual stream: a clip is then treated as a batch of
        images.
        """
        zero_(self.up_conv)


class FrameDownsample(nn.Module):
    """Halves the number of frames by a convolution over frames with stride 2."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv1d(channels, channels, 3, stride=2, padding=1)

    def forward(self, hidden_states: torch.Tensor, num_frames: int) -> torch.Tensor:
        """`(B F, C, H, W)` → `(B F / 2, C, H, W)`."""
        return _over_frames(self.conv, hidden_states, num_frames, 1)


class FrameUpsample(nn.Module):
    """Doubles the number of frames by repeating each, followed by a convolution over frames."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv1d(channels, channels, 3, padding=1)

    def forward(self, hidden_states: torch.Tensor, num_frames: int) -> torch.Tensor:
        """`(B F, C, H, W)` → `(B 2 F, C, H, W)`."""
        return _over_frames(self.conv, hidden_states, num_frames, 2)


def _over_frames(conv: nn.Module, frames: torch.Tensor, num_frames: int, repeats: int) -> torch.Tensor:
    """Convolve over frames at every position, with each frame repeated `repeats` times."""
    batch, (height, width) = frames.shape[0] // num_frames, frames.shape[2:]
    lines = unfold_frames(frames, num_frames).permute(0, 3, 4, 1, 2).flatten(0, 2)
    if repeats > 1:
        lines = lines.repeat_interleave(repeats, dim=-1)
    convolved = conv(lines).unflatten(0, (batch, height, width))
    return convolved.permute(0, 4, 3, 1, 2).flatten(0, 1)
