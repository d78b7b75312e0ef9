# SPDX-License-Identifier: Apache-2.0
"""What the model makes of a prompt: everything that does not depend on the timestep."""

from __future__ import annotations

import dataclasses

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

    def to(self, device: torch.device | str | int, non_blocking: bool = False) -> TextConditioning:
        """The same on another device; accelerate calls it where a level is elsewhere than the text."""

        def moved(tensor: torch.Tensor) -> torch.Tensor:
            return tensor.to(device, non_blocking=non_blocking)

        return TextConditioning(
            moved(self.hidden_states),
            moved(self.pooled),
            None if self.attention_mask is None else moved(self.attention_mask),
            None if self.keys_values is None else tuple((moved(k), moved(v)) for k, v in self.keys_values),
        )

    def first_rows(self, num_rows: int) -> TextConditioning:
        """The same for the first `num_rows` rows: outer levels may have a smaller batch."""
        if num_rows == self.hidden_states.shape[0]:
            return self
        return TextConditioning(
            self.hidden_states[:num_rows],
            self.pooled[:num_rows],
            None if self.attention_mask is None else self.attention_mask[:num_rows],
            None if self.keys_values is None else tuple((k[:num_rows], v[:num_rows]) for k, v in self.keys_values),
        )


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
