# SPDX-License-Identifier: Apache-2.0
"""Text encoder and U-Net in one module, so that one wrapper (DDP, FSDP) contains all trained parameters."""

from collections.abc import Mapping
from typing import cast

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from ...models.nested_unet import NestedUNetModel
from ...pipelines.drawing.conditioning import encode_tokens
from ...pyramid import Pyramid
from .caption_tokens import CaptionTokens


class ConditionedUNet(torch.nn.Module):
    """Predicts v of a noisy pyramid, given captions.

    Args:
        unet: the U-Net.
        text_encoder: the text encoder, if it is trained; otherwise captions are passed as features.
        tokenizer: tokenizer of the text encoder.
        max_sequence_length: number of tokens after which captions are truncated.
    """

    def __init__(
        self,
        unet: NestedUNetModel,
        text_encoder: PreTrainedModel | None = None,
        tokenizer: PreTrainedTokenizerBase | None = None,
        max_sequence_length: int = 128,
    ):
        super().__init__()
        # The text encoder comes first, as in the order of the optimizer's parameter groups.
        if text_encoder is not None:
            self.text_encoder = text_encoder
        self.unet = unet
        self.tokenizer = tokenizer
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
        output = self.unet(
            noisy,
            timesteps,
            encoder_hidden_states=prompt_embeds,
            encoder_attention_mask=prompt_attention_mask,
            class_labels=class_labels,
            added_cond_kwargs=added_cond_kwargs,
        )
        return cast(Pyramid, output.sample)
