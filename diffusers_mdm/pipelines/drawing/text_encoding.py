# SPDX-License-Identifier: Apache-2.0
"""From prompts to the text features that the model attends to."""

from __future__ import annotations

import threading

import torch
import torch.nn.functional as F
from diffusers.utils import logging
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from diffusers_mdm.pipelines.drawing.request import Prompt, Request

Features = tuple[torch.Tensor, torch.Tensor]  # (B, L, width), and the mask (B, L)
_LONGEST = 2**31 - 1  # tokens; tokenizers without a limit say 10^30, which fast ones cannot count to
# A fast tokenizer keeps the lengths of its last call, so that only one thread at a time may call it.
_TOKENIZING = threading.Lock()
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

    Raises:
        ValueError: a text cannot be written in Unicode.
    """
    for text in texts:
        if not _is_encodable(text):
            raise ValueError(
                f"The prompt {text!r} has half of a surrogate pair, which is no character; take it out of the text."
            )
    max_length = min(max_sequence_length, tokenizer.model_max_length, _LONGEST)
    with _TOKENIZING:
        tokens = tokenizer(texts, padding="longest", truncation=True, max_length=max_length, return_tensors="pt")
        _warn_if_truncated(texts, tokenizer, max_length)
    mask = tokens.attention_mask.to(device)
    features = text_encoder(tokens.input_ids.to(device), attention_mask=mask).last_hidden_state
    return features * mask.to(features.dtype)[..., None], mask.bool()


def _is_encodable(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


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


def encode_prompts(
    request: Request,
    tokenizer: PreTrainedTokenizerBase | None,
    text_encoder: PreTrainedModel | None,
    device: torch.device,
    *,
    guided: bool,
    copies: int,
) -> tuple[torch.Tensor, torch.Tensor | None, torch.Tensor, torch.Tensor | None]:
    """Encode what a request says about texts: the only home of text encoding, see `encode_prompt` of the pipelines.

    Args:
        request: prompts, or ready features and masks in their place.
        tokenizer: the tokenizer of the encoder; not needed for ready features.
        text_encoder: the encoder; not needed for ready features.
        device: of the features.
        guided: whether to encode the negative prompts too.
        copies: n, the features of each prompt are repeated so often.

    Returns:
        Features `(B * n, L, width)` of the prompts and of the negative prompts, then their masks `(B * n, L)`.

    Raises:
        ValueError: there are texts to encode, and no text encoder.
    """

    def encode_or_take(prompt: Prompt, embeds: torch.Tensor | None, mask: torch.Tensor | None) -> Features:
        if embeds is not None:
            return take_features(embeds, mask, device)
        if text_encoder is None or tokenizer is None:
            raise ValueError(
                "This pipeline has no text encoder or no tokenizer, so it cannot encode prompts; pass "
                "`prompt_embeds` (and `negative_prompt_embeds` with guidance), or load it with both."
            )
        texts = [prompt] if isinstance(prompt, str) else list(prompt or [])
        return encode_texts(texts, tokenizer, text_encoder, device, request.max_sequence_length)

    features, mask = encode_or_take(request.prompt, request.prompt_embeds, request.prompt_attention_mask)
    if not guided:
        return features.repeat_interleave(copies, dim=0), None, mask.repeat_interleave(copies, dim=0), None
    negatives, negative_mask = encode_or_take(
        request.negative_prompt or "", request.negative_prompt_embeds, request.negative_prompt_attention_mask
    )
    if len(negatives) == 1:
        negatives, negative_mask = negatives.expand(len(features), -1, -1), negative_mask.expand(len(features), -1)
    length = max(features.shape[1], negatives.shape[1])
    padded = (*pad_to_length(features, mask, length), *pad_to_length(negatives, negative_mask, length))
    features, mask, negatives, negative_mask = (entry.repeat_interleave(copies, dim=0) for entry in padded)
    return features, negatives, mask, negative_mask


def take_features(embeds: torch.Tensor, mask: torch.Tensor | None, device: torch.device) -> Features:
    """Ready features `(B, L, width)`, zero at pads, and their mask; without one every entry is a token."""
    embeds = embeds.to(device)
    mask = torch.ones(embeds.shape[:2], dtype=torch.bool) if mask is None else mask.bool()
    mask = mask.to(device)
    return embeds * mask.to(embeds.dtype)[..., None], mask
