# SPDX-License-Identifier: Apache-2.0
"""Level slicing: running a level on one sample of a batch at a time, which needs less memory."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch

from .forward_inputs import TextConditioning


class LevelSlicingMixin:
    """Adds `enable_level_slicing` to a model, like diffusers' `enable_vae_slicing`."""

    levels: Any

    def enable_level_slicing(self) -> None:
        """Run every level but the innermost one on one sample at a time.

        Layers then need temporary memory for a single sample. Results are the same up to rounding; large batches can
        be faster without it.
        """
        for level in self.levels[1:]:
            level.is_sliced = True

    def disable_level_slicing(self) -> None:
        """Run all levels on whole batches again."""
        for level in self.levels:
            level.is_sliced = False


def encode_sliced(
    encode: Callable[..., tuple[Any, ...]],
    sample: torch.Tensor,
    features: torch.Tensor | None,
    timestep: torch.Tensor,
    micro_conditioning: Mapping[str, torch.Tensor],
    pooled: torch.Tensor | None,
    text: TextConditioning | None,
    num_frames: int = 1,
) -> tuple[Any, ...]:
    """Run a level's `encode` on one sample at a time.

    Args:
        encode: `Level.encode`, whose arguments follow.
        sample: noisy samples; of clips, all frames of a sample are neighbours.
        features: features of the level outside, which may have fewer samples.
        timestep: t of each sample.
        micro_conditioning: numbers for each sample, by name.
        pooled: pooled conditions of each sample.
        text: texts of all samples.
        num_frames: frames of each sample.

    Returns:
        Lists for `decode_sliced`, but whole features for the level inside.
    """
    made = []
    for index in range(timestep.shape[0]):
        one, frames = slice(index, index + 1), slice(index * num_frames, (index + 1) * num_frames)
        given = None if features is None or features.shape[0] <= frames.start else features[frames]
        micro = {key: value[one] for key, value in micro_conditioning.items()}
        own_text = None if text is None else text.only(index)
        own_pooled = None if pooled is None else pooled[one]
        made.append(encode(sample[frames], given, timestep[one], micro, own_pooled, own_text, num_frames))
    hidden_states, skips, inner, embedding = map(list, zip(*made, strict=True))
    return hidden_states, skips, torch.cat(inner), embedding


def decode_sliced(
    decode: Callable[..., tuple[torch.Tensor, torch.Tensor]],
    hidden_states: list[torch.Tensor],
    skips: list[tuple[torch.Tensor, ...]],
    inner_features: torch.Tensor,
    embedding: list[torch.Tensor],
    text: TextConditioning | None,
    num_frames: int = 1,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Run a level's `decode` on one sample at a time.

    Args:
        decode: `Level.decode`, whose arguments follow.
        hidden_states: from `encode_sliced`, one entry per sample; emptied here, to free memory.
        skips: likewise.
        inner_features: features of the level inside, for all samples.
        embedding: likewise one per sample, emptied here.
        text: texts of all samples.
        num_frames: frames of each sample.

    Returns:
        Predictions and features of all samples.
    """
    made: list[tuple[torch.Tensor, torch.Tensor]] = []
    inner = inner_features.split(hidden_states[0].shape[0])
    while hidden_states:
        own_text = None if text is None else text.only(len(made))
        own = (hidden_states.pop(0), skips.pop(0), inner[len(made)], embedding.pop(0))
        made.append(decode(*own, own_text, num_frames))
    predictions, features = zip(*made, strict=True)
    return torch.cat(predictions), torch.cat(features)
