# SPDX-License-Identifier: Apache-2.0
"""Text encoder and U-Net in one module, so that one wrapper (DDP, FSDP) contains all trained parameters.

Each caption is tokenised once in a run: a small model would wait longer for its tokenizer than for itself.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import cast

import numpy as np
import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from ...models.compilation import allow_other_lengths
from ...models.nested_unet import NestedUNetModel
from ...pipelines.drawing.conditioning import encode_tokens, tokenize
from ...pyramid import Pyramid

MAX_REMEMBERED = 200_000  # captions


class ConditionedUNet(torch.nn.Module):
    """Predicts v of a noisy pyramid, given captions.

    Args:
        unet: the U-Net.
        text_encoder: the text encoder, if it is trained; otherwise captions are passed as features.
        tokenizer: tokenizer of the text encoder.
        max_sequence_length: number of tokens after which captions are truncated.
        extra_losses: layers that extra losses train, by the names of the losses; they run inside the U-Net's forward
            pass.
        is_compiled: whether the U-Net is compiled, and should then have one graph for captions of all lengths.
    """

    def __init__(
        self,
        unet: NestedUNetModel,
        text_encoder: PreTrainedModel | None = None,
        tokenizer: PreTrainedTokenizerBase | None = None,
        max_sequence_length: int = 128,
        extra_losses: Mapping[str, torch.nn.Module] | None = None,
        is_compiled: bool = False,
    ):
        super().__init__()
        # The text encoder comes first, as in the order of the optimizer's parameter groups.
        if text_encoder is not None:
            self.text_encoder = text_encoder
        self.unet = unet
        if extra_losses:
            self.extra_losses = torch.nn.ModuleDict(dict(extra_losses))
        self.tokenizer, self.is_compiled = tokenizer, is_compiled
        self.tokens = None if tokenizer is None else CaptionTokens(tokenizer, max_sequence_length)

    def forward(
        self,
        noisy: Pyramid,
        timesteps: torch.Tensor,
        captions: list[str] | None = None,
        prompt_embeds: torch.Tensor | None = None,
        prompt_attention_mask: torch.Tensor | None = None,
        class_labels: torch.Tensor | None = None,
        added_cond_kwargs: Mapping[str, torch.Tensor] | None = None,
    ) -> Pyramid:
        """Predict v of every level.

        Args:
            noisy: levels `(B_i, C, H_i, W_i)`, innermost first.
            timesteps: `(B_0,)`.
            captions: B_0 captions, which are encoded with gradients.
            prompt_embeds: features `(B_0, L, D)`, instead of captions.
            prompt_attention_mask: `(B_0, L)`, the mask of `prompt_embeds`.
            class_labels: `(B_0,)`, for class-conditional models.
            added_cond_kwargs: micro-conditioning `(B_0,)` by name.
        """
        if captions is not None:
            tokens, mask = cast(CaptionTokens, self.tokens).of(captions)
            prompt_embeds, prompt_attention_mask = encode_tokens(tokens, mask, self.text_encoder, timesteps.device)
        if self.is_compiled and prompt_embeds is not None:
            allow_other_lengths(prompt_embeds, prompt_attention_mask)
        output = self.unet(
            noisy,
            timesteps,
            encoder_hidden_states=prompt_embeds,
            encoder_attention_mask=prompt_attention_mask,
            class_labels=class_labels,
            added_cond_kwargs=added_cond_kwargs,
        )
        return cast(Pyramid, output.sample)


class CaptionTokens:
    """Tokenises captions, and remembers their tokens.

    Args:
        tokenizer: the tokenizer.
        max_sequence_length: captions are truncated after this many tokens.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, max_sequence_length: int):
        self.tokenizer, self.max_sequence_length = tokenizer, max_sequence_length
        self._known: dict[str, np.ndarray] = {}

    def of(self, captions: list[str]) -> tuple[torch.Tensor, torch.Tensor]:
        """Return tokens and mask of captions, `(B, L)` int64, as `tokenize` does.

        Raises:
            ValueError: a caption contains a lone surrogate.
        """
        different = list(dict.fromkeys(captions))
        unknown = [caption for caption in different if caption not in self._known]
        if len(self._known) + len(unknown) > MAX_REMEMBERED:
            self._known.clear()
            unknown = different
        self._learn(unknown)
        known = [self._known[caption] for caption in captions]
        lengths = np.array([len(ids) for ids in known])
        places = np.arange(lengths.max(initial=0))
        if self.tokenizer.padding_side == "left":
            places = places[::-1]
        mask = places < lengths[:, None]
        tokens = np.full(mask.shape, self.tokenizer.pad_token_id, dtype=np.int64)
        tokens[mask] = np.concatenate(known)
        return torch.from_numpy(tokens), torch.from_numpy(mask).long()

    def _learn(self, captions: list[str]) -> None:
        if not captions:
            return
        tokens, mask = tokenize(captions, self.tokenizer, self.max_sequence_length)
        for caption, ids, kept in zip(captions, tokens.numpy(), mask.bool().numpy(), strict=True):
            self._known[caption] = ids[kept]
