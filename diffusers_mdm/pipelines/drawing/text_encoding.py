# SPDX-License-Identifier: Apache-2.0
"""From prompts to the text features that the model attends to."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from diffusers.utils import logging
from transformers import PreTrainedModel, PreTrainedTokenizerBase

logger = logging.get_logger(__name__)


def encode_texts(
    texts: list[str],
    tokenizer: PreTrainedTokenizerBase,
    text_encoder: PreTrainedModel,
    device: torch.device,
    max_sequence_length: int,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Encode texts with any transformers encoder that has a `last_hidden_state`.

    Args:
        texts: prompts; they are padded to the longest of them.
        tokenizer: the tokenizer of the encoder.
        text_encoder: the encoder.
        device: of the features.
        max_sequence_length: cut after so many tokens, or the tokenizer's own limit where that is shorter.

    Returns:
        Features `(B, L, width)`, zero at pads (ml-mdm multiplies them by the mask), and the mask `(B, L)`, True where
        there is a token.
    """
    max_length = min(max_sequence_length, tokenizer.model_max_length)
    tokens = tokenizer(texts, padding="longest", truncation=True, max_length=max_length, return_tensors="pt")
    _warn_if_truncated(texts, tokenizer, max_length)
    mask = tokens.attention_mask.to(device)
    features = text_encoder(tokens.input_ids.to(device), attention_mask=mask).last_hidden_state
    return features * mask.to(features.dtype)[..., None], mask.bool()


def _warn_if_truncated(texts: list[str], tokenizer: PreTrainedTokenizerBase, max_length: int) -> None:
    for text in texts:
        num_tokens = len(tokenizer(text, truncation=False, verbose=False).input_ids)
        if num_tokens > max_length:
            logger.warning(
                f"A prompt has {num_tokens} tokens and was cut after {max_length}; the rest is ignored: {text!r}"
            )


def pad_to_length(features: torch.Tensor, mask: torch.Tensor, length: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Append pads (zero features, False in the mask) up to `length` tokens.

    Args:
        features: `(B, L, width)`.
        mask: `(B, L)` bool.
        length: at least L.
    """
    missing = length - features.shape[1]
    return F.pad(features, (0, 0, 0, missing)), F.pad(mask, (0, missing), value=False)


class PromptEncodingMixin:
    """The only home of text encoding: pipelines and training call the same `encode_prompt`."""

    text_encoder: PreTrainedModel | None
    tokenizer: PreTrainedTokenizerBase | None
    _execution_device: torch.device

    @staticmethod
    def num_prompts(prompt: str | list[str] | None, prompt_embeds: torch.Tensor | None) -> int:
        """Count the prompts, given as texts or as features `(B, L, width)`."""
        if prompt_embeds is not None:
            return len(prompt_embeds)
        return len(prompt) if isinstance(prompt, list) else 1

    def encode_prompt(
        self,
        prompt: str | list[str] | None = None,
        device: torch.device | None = None,
        num_images_per_prompt: int = 1,
        do_classifier_free_guidance: bool = True,
        negative_prompt: str | list[str] | None = None,
        prompt_embeds: torch.Tensor | None = None,
        negative_prompt_embeds: torch.Tensor | None = None,
        prompt_attention_mask: torch.Tensor | None = None,
        negative_prompt_attention_mask: torch.Tensor | None = None,
        max_sequence_length: int = 128,
    ) -> tuple[torch.Tensor, torch.Tensor | None, torch.Tensor, torch.Tensor | None]:
        """Encode prompts into what the model attends to. Gradients flow to the text encoder where they are enabled.

        Args:
            prompt: one text or a list of them.
            device: where the features go; by default where the pipeline runs.
            num_images_per_prompt: n, each row is repeated so often.
            do_classifier_free_guidance: whether to encode the negative prompts too.
            negative_prompt: one text, or one for each prompt; empty texts by default.
            prompt_embeds: `(B, L, width)`, ready features in place of `prompt`.
            negative_prompt_embeds: the same in place of `negative_prompt`.
            prompt_attention_mask: `(B, L)`, True where `prompt_embeds` has a token; None says everywhere.
            negative_prompt_attention_mask: the same for `negative_prompt_embeds`.
            max_sequence_length: longer prompts are cut, with a warning.

        Returns:
            Features `(B * n, L, width)`, zero at pads, of the prompts and of the negative prompts, then their masks
            `(B * n, L)`, True where there is a token. Both have the same L. Without guidance the negative ones are
            None.
        """
        device = device or self._execution_device
        prompt_embeds, prompt_attention_mask = self._encode_or_take(
            prompt, prompt_embeds, prompt_attention_mask, device, max_sequence_length
        )
        if do_classifier_free_guidance:
            negative_prompt_embeds, negative_prompt_attention_mask = self._encode_or_take(
                negative_prompt or "",
                negative_prompt_embeds,
                negative_prompt_attention_mask,
                device,
                max_sequence_length,
            )
            if len(negative_prompt_embeds) == 1:
                negative_prompt_embeds = negative_prompt_embeds.expand(len(prompt_embeds), -1, -1)
                negative_prompt_attention_mask = negative_prompt_attention_mask.expand(len(prompt_embeds), -1)
            length = max(prompt_embeds.shape[1], negative_prompt_embeds.shape[1])
            prompt_embeds, prompt_attention_mask = pad_to_length(prompt_embeds, prompt_attention_mask, length)
            negative_prompt_embeds, negative_prompt_attention_mask = pad_to_length(
                negative_prompt_embeds, negative_prompt_attention_mask, length
            )
            negative_prompt_embeds = negative_prompt_embeds.repeat_interleave(num_images_per_prompt, dim=0)
            negative_prompt_attention_mask = negative_prompt_attention_mask.repeat_interleave(
                num_images_per_prompt, dim=0
            )
        else:
            negative_prompt_embeds, negative_prompt_attention_mask = None, None
        prompt_embeds = prompt_embeds.repeat_interleave(num_images_per_prompt, dim=0)
        prompt_attention_mask = prompt_attention_mask.repeat_interleave(num_images_per_prompt, dim=0)
        return prompt_embeds, negative_prompt_embeds, prompt_attention_mask, negative_prompt_attention_mask

    def _encode_or_take(
        self,
        prompt: str | list[str] | None,
        embeds: torch.Tensor | None,
        mask: torch.Tensor | None,
        device: torch.device,
        max_sequence_length: int,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        if embeds is None:
            if self.text_encoder is None or self.tokenizer is None:
                raise ValueError(
                    "This pipeline has no text encoder or no tokenizer, so it cannot encode prompts; pass "
                    "`prompt_embeds` (and `negative_prompt_embeds` with guidance), or load it with both."
                )
            texts = [prompt] if isinstance(prompt, str) else list(prompt or [])
            return encode_texts(texts, self.tokenizer, self.text_encoder, device, max_sequence_length)
        embeds = embeds.to(device)
        mask = torch.ones(embeds.shape[:2], dtype=torch.bool) if mask is None else mask.bool()
        mask = mask.to(device)
        return embeds * mask.to(embeds.dtype)[..., None], mask
