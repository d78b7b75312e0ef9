# SPDX-License-Identifier: Apache-2.0
"""What the rows of a batch are conditioned on, and which rows may go through the model together."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch


class RowGroup(NamedTuple):
    """Rows of a batch that go through the model together.

    Attributes:
        rows: which rows, None for all.
        columns: which text columns they see, None for all.
        has_pads: whether any of these columns is a pad in one of these rows.
    """

    rows: torch.Tensor | None
    columns: torch.Tensor | None
    has_pads: bool


class Conditioning(NamedTuple):
    """Encoded prompts as `encode_prompt` returns them, class labels, or both; without guidance there are no negatives.

    Attributes:
        prompt_embeds: `(B, L, width)`.
        negative_prompt_embeds: `(B, L, width)`.
        prompt_attention_mask: `(B, L)` bool, True where there is a token.
        negative_prompt_attention_mask: `(B, L)` bool.
        class_labels: `(B,)` whole numbers.
        negative_class_labels: `(B,)` whole numbers, those of the null class by default.
    """

    prompt_embeds: torch.Tensor | None = None
    negative_prompt_embeds: torch.Tensor | None = None
    prompt_attention_mask: torch.Tensor | None = None
    negative_prompt_attention_mask: torch.Tensor | None = None
    class_labels: torch.Tensor | None = None
    negative_class_labels: torch.Tensor | None = None

    def select(self, group: RowGroup) -> Conditioning:
        """Keep the rows and columns of a group."""
        rows = slice(None) if group.rows is None else group.rows
        columns = slice(None) if group.columns is None else group.columns
        kept = {name: entry[rows] for name, entry in self._asdict().items() if entry is not None}
        return self._replace(**{name: entry[:, columns] if entry.ndim > 1 else entry for name, entry in kept.items()})

    def model_inputs(self, *, guided: bool, has_pads: bool, dtype: torch.dtype) -> dict[str, Any]:
        """Arguments of one model call: with guidance the unconditional rows come first.

        Args:
            guided: whether the model also runs on the negative entries.
            has_pads: whether the masks hide anything.
            dtype: of the text features.
        """
        inputs: dict[str, Any] = {}
        if self.prompt_embeds is not None:
            features = self._stack("prompt_embeds", guided)
            inputs["encoder_hidden_states"] = features.to(dtype)
            inputs["encoder_attention_mask"] = self._stack("prompt_attention_mask", guided) if has_pads else None
        if self.class_labels is not None:
            inputs["class_labels"] = self._stack("class_labels", guided)
        return inputs

    def _stack(self, name: str, guided: bool) -> torch.Tensor:
        entries = self._asdict()
        if not guided:
            return entries[name]
        if entries[f"negative_{name}"] is None:
            raise ValueError(
                "Guidance was turned on while drawing, but there are no negative prompts: start with "
                "`guidance_scale` above 1."
            )
        return torch.cat([entries[f"negative_{name}"], entries[name]])


def group_rows_by_text(conditioning: Conditioning, *, own_columns: bool) -> list[RowGroup]:
    """Split a batch into the parts that one model call may take together.

    Published models do not mask pads in their cross-attention: a short prompt would see the pads that a longer
    neighbour made necessary, and its picture would depend on the batch it is drawn in. With `own_columns` every row
    keeps only the columns it would have in a batch of its own, so rows with different columns need their own call.

    Args:
        conditioning: what the batch is conditioned on.
        own_columns: False puts all rows into one group and keeps every column.
    """
    both = (conditioning.prompt_attention_mask, conditioning.negative_prompt_attention_mask)
    masks = [mask for mask in both if mask is not None]
    if not masks:
        return [RowGroup(rows=None, columns=None, has_pads=False)]
    taken = torch.stack(masks).any(dim=0)
    if not own_columns or bool(taken.all()):
        return [RowGroup(rows=None, columns=None, has_pads=not all(bool(mask.all()) for mask in masks))]
    patterns, pattern_of_row = torch.unique(taken, dim=0, return_inverse=True)
    groups = []
    for index, pattern in enumerate(patterns):
        rows, columns = (pattern_of_row == index).nonzero()[:, 0], pattern.nonzero()[:, 0]
        has_pads = not all(bool(mask[rows][:, columns].all()) for mask in masks)
        groups.append(RowGroup(rows, columns, has_pads))
    return groups
