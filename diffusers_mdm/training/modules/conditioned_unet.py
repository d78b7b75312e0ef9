# SPDX-License-Identifier: Apache-2.0
"""Text encoder and U-Net as one module, so that one wrapper (DDP, FSDP) sees every parameter that is trained."""

from collections.abc import Mapping
from typing import cast

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from ...models.nested_unet import NestedUNetModel
from ...pipelines.drawing.conditioning import encode_texts
from ...pyramid import Pyramid


class ConditionedUNet(torch.nn.Module):
    """Captions and a noisy pyramid in, predictions out.

    Args:
        unet: the U-Net.
        text_encoder: the encoder where it is trained; otherwise captions come encoded.
        tokenizer: of the text encoder.
        max_sequence_length: number of tokens after which captions are cut.
    """

    def __init__(
        self,
        unet: NestedUNetModel,
        text_encoder: PreTrainedModel | None = None,
        tokenizer: PreTrainedTokenizerBase | None = None,
        max_sequence_length: int = 128,
    ):
        super().__init__()
        # The encoder comes first, as in the order of the optimizer's groups.
        if text_encoder is not None:
            self.text_encoder = text_encoder
        self.unet = unet
        self.tokenizer = tokenizer
        self.max_sequence_length = max_sequence_length

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
            captions: B_0 texts, encoded here with gradients.
            prompt_embeds: `(B_0, L, D)` in their place.
            prompt_attention_mask: `(B_0, L)` of `prompt_embeds`.
            class_labels: `(B_0,)` for models with classes.
            added_cond_kwargs: micro-conditions `(B_0,)` by name.
        """
        if captions is not None:
            prompt_embeds, prompt_attention_mask = encode_texts(
                captions,
                cast(PreTrainedTokenizerBase, self.tokenizer),
                self.text_encoder,
                timesteps.device,
                self.max_sequence_length,
            )
        output = self.unet(
            noisy,
            timesteps,
            encoder_hidden_states=prompt_embeds,
            encoder_attention_mask=prompt_attention_mask,
            class_labels=class_labels,
            added_cond_kwargs=added_cond_kwargs,
        )
        return cast(Pyramid, output.sample)
