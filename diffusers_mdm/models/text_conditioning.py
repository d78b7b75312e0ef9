# SPDX-License-Identifier: Apache-2.0
"""What the model makes of a prompt: everything that does not depend on the timestep."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import cast

import torch


@dataclasses.dataclass
class TextConditioning:
    """A prompt as the levels see it.

    Args:
        hidden_states: `(B, L, D)`, projected text.
        pooled: `(B, T)`, the text vector that is added to every level's time embedding.
        attention_mask: `(B, L)` bool, True where attention may look; `None` for everywhere.
        keys_values: for each attention layer with text, in `modules()` order, its key and value `(B, L, heads, d)`;
            `None` to compute them at every call.
    """

    hidden_states: torch.Tensor
    pooled: torch.Tensor
    attention_mask: torch.Tensor | None = None
    keys_values: tuple[tuple[torch.Tensor, torch.Tensor], ...] | None = None

    def tensors(self) -> list[torch.Tensor | None]:
        """Every tensor, in an order from which `with_tensors` makes the same again."""
        flat = [part for pair in self.keys_values or () for part in pair]
        return [self.hidden_states, self.pooled, self.attention_mask, *flat]

    def with_tensors(self, tensors: Sequence[torch.Tensor | None]) -> TextConditioning:
        """The same with other tensors in the place of `tensors()`."""
        hidden_states, pooled, mask, *flat = tensors
        if hidden_states is None or pooled is None:
            raise ValueError("The states of the text and their mean are missing.")
        pairs = cast(list[torch.Tensor], flat)
        keys_values = None if self.keys_values is None else tuple(zip(pairs[::2], pairs[1::2], strict=True))
        return TextConditioning(hidden_states, pooled, mask, keys_values)

    def to(self, device: torch.device | str | int, non_blocking: bool = False) -> TextConditioning:
        """The same on another device; accelerate calls it where a level is elsewhere than the text."""
        return self.with_tensors(
            [None if tensor is None else tensor.to(device, non_blocking=non_blocking) for tensor in self.tensors()]
        )

    def first_rows(self, num_rows: int) -> TextConditioning:
        """The same for the first `num_rows` rows: outer levels may have a smaller batch."""
        if num_rows == self.hidden_states.shape[0]:
            return self
        return self.with_tensors([None if tensor is None else tensor[:num_rows] for tensor in self.tensors()])


def masked_mean(hidden_states: torch.Tensor, mask: torch.Tensor | None) -> torch.Tensor:
    """Mean over the tokens that `mask` keeps; over all without one; zero where it keeps none.

    Args:
        hidden_states: `(B, L, D)`.
        mask: `(B, L)`, nonzero where a token counts.

    Returns:
        `(B, D)`.
    """
    if mask is None:
        return hidden_states.mean(dim=1)
    weights = mask.to(hidden_states.dtype).unsqueeze(-1)
    return (hidden_states * weights).sum(dim=1) / weights.sum(dim=1).clamp(min=1)
