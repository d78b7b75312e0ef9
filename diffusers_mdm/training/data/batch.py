# SPDX-License-Identifier: Apache-2.0
"""The micro-batch of captioned images or clips that the data pipeline passes to the training loop."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass, field

import torch


@dataclass
class Batch:
    """B captioned images of one size, or B clips of F frames.

    Attributes:
        pixels: uint8, `(B, 3, H, W)` for images and single frames of clips, `(B, 3, F, S, S)` for clips with F > 1.
        captions: B captions; the empty one is a caption like any other.
        positions: `(B,)` int64, the position of each sample in the stage's endless stream of samples. All random
            numbers of a sample depend only on the seed, the stage and this position.
        micro_conditioning: maps names to `(B,)` float32, for `added_cond_kwargs`.
        sample_weights: `(B,)` float32, weight of each sample in the loss; None for 1.
        prompt_embeds: `(B, L, D)`, the features of the captions if they were precomputed, zero at padding tokens.
        prompt_attention_mask: `(B, L)` bool, True where `prompt_embeds` has a token.
        empty_prompt_embeds: `(K, D)`, the features of the empty caption, if there are `prompt_embeds`.
        class_labels: `(B,)` int64, for class-conditional models.
    """

    pixels: torch.Tensor
    captions: list[str]
    positions: torch.Tensor
    micro_conditioning: dict[str, torch.Tensor] = field(default_factory=dict)
    sample_weights: torch.Tensor | None = None
    prompt_embeds: torch.Tensor | None = None
    prompt_attention_mask: torch.Tensor | None = None
    empty_prompt_embeds: torch.Tensor | None = None
    class_labels: torch.Tensor | None = None

    def __len__(self) -> int:
        return len(self.captions)

    @property
    def num_frames(self) -> int:
        """F; 1 for images."""
        return self.pixels.shape[2] if self.pixels.ndim == 5 else 1

    def to(self, device: torch.device | str, non_blocking: bool = False) -> Batch:
        """Return the batch with all tensors on `device`."""
        return self._map(lambda tensor: tensor.to(device, non_blocking=non_blocking))

    def pin_memory(self) -> Batch:
        """Return the batch in pinned memory; `DataLoader` calls this."""
        return self._map(lambda tensor: tensor.pin_memory())

    def _map(self, change: Callable[[torch.Tensor], torch.Tensor]) -> Batch:
        values = {name: getattr(self, name) for name in (entry.name for entry in dataclasses.fields(self))}
        for name, value in values.items():
            if isinstance(value, torch.Tensor):
                values[name] = change(value)
        values["micro_conditioning"] = {key: change(value) for key, value in self.micro_conditioning.items()}
        return Batch(**values)


def to_unit_range(pixels: torch.Tensor) -> torch.Tensor:
    """uint8 pixels 0..255 -> float32 in [-1, 1], the range of images in pipelines."""
    return pixels.float() / 127.5 - 1.0


def replace_by_empty(batch: Batch, dropped: torch.Tensor, null_class: int | None = None) -> Batch:
    """Replace the captions (and features) of some samples by the empty caption, and their classes by the null class.

    Features are cut to the longest remaining sample, as if the captions had been encoded after the replacement:
    models that do not mask padding are affected by its length.

    Args:
        batch: the batch.
        dropped: `(B,)` bool, True for the samples whose caption is dropped.
        null_class: the class for "no class", for class-conditional models.

    Returns:
        A new batch; the given one is unchanged.

    Raises:
        ValueError: if there are features of the captions, but not of the empty one.
    """
    flags = dropped.tolist()
    captions = ["" if drop else caption for caption, drop in zip(batch.captions, flags, strict=True)]
    if batch.class_labels is not None and null_class is not None:
        labels = batch.class_labels.masked_fill(dropped.to(batch.class_labels.device), null_class)
        batch = dataclasses.replace(batch, class_labels=labels)
    if batch.prompt_embeds is None:
        return dataclasses.replace(batch, captions=captions)
    if batch.empty_prompt_embeds is None or batch.prompt_attention_mask is None:
        raise ValueError(
            "This batch has text features, but lacks those of the empty caption (`empty_prompt_embeds`) or a mask; "
            "`TextEmbeddings` provides all of them."
        )
    embeds, mask = _with_empty_rows(
        batch.prompt_embeds,
        batch.prompt_attention_mask,
        batch.empty_prompt_embeds,
        dropped.to(batch.prompt_embeds.device),
    )
    return dataclasses.replace(batch, captions=captions, prompt_embeds=embeds, prompt_attention_mask=mask)


def _with_empty_rows(
    embeds: torch.Tensor, mask: torch.Tensor, empty: torch.Tensor, dropped: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    lengths = mask.sum(1).masked_fill(dropped, len(empty))
    length = max(int(lengths.max()), 1)
    missing = max(length - embeds.shape[1], 0)
    embeds = torch.nn.functional.pad(embeds, (0, 0, 0, missing))[:, :length].clone()
    embeds[dropped] = torch.nn.functional.pad(empty, (0, 0, 0, max(length - len(empty), 0)))[:length].to(embeds)
    return embeds, torch.arange(length, device=mask.device) < lengths[:, None]
