# SPDX-License-Identifier: Apache-2.0
"""Conditions of a drawing: encoding prompts, micro-conditioning, and dividing a batch into groups of samples that can
go through the model together.
"""

from __future__ import annotations

import threading
from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from diffusers.utils import logging
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from diffusers_mdm.pipelines.drawing.request import Prompt, Request

Features = tuple[torch.Tensor, torch.Tensor]  # (B, L, width), and the mask (B, L)
# Micro-conditions by name, (2, B): those of the unconditional half of the batch, then those of the conditional one.
MicroConditioning = dict[str, torch.Tensor]
_LONGEST = 2**31 - 1  # tokens; tokenizers without a limit have 10^30, which is too large for fast ones
# A fast tokenizer stores the lengths of its last call, so only one thread at a time may call it.
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
        device: device of the features.
        max_sequence_length: texts are truncated after this many tokens, or at the tokenizer's own limit if that is
            lower.

    Returns:
        Features `(B, L, width)`, zero at padding (ml-mdm multiplies them by the mask), and the mask `(B, L)`, True for
        tokens.

    Raises:
        ValueError: as for `tokenize`.
    """
    tokens, mask = tokenize(texts, tokenizer, max_sequence_length)
    return encode_tokens(tokens, mask, text_encoder, device)


def tokenize(
    texts: list[str], tokenizer: PreTrainedTokenizerBase, max_sequence_length: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the tokens of texts, padded to the longest of them, and their mask, both `(B, L)` int64.

    Args:
        texts: the texts.
        tokenizer: the tokenizer.
        max_sequence_length: texts are truncated after this many tokens, or at the tokenizer's own limit if that is
            lower.

    Raises:
        ValueError: a text contains a lone surrogate, or there is no token in any of them.
    """
    for text in texts:
        if not _is_encodable(text):
            raise ValueError(
                f"The prompt {text!r} contains a lone surrogate, which is not a character; remove it from the text."
            )
    max_length = min(max_sequence_length, tokenizer.model_max_length, _LONGEST)
    with _TOKENIZING:
        tokens = tokenizer(texts, padding="longest", truncation=True, max_length=max_length, return_tensors="pt")
        if not tokens.input_ids.shape[1]:
            raise ValueError(
                f"The tokenizer gives no token for {texts[0]!r}, and the text encoder needs at least one; use a "
                "tokenizer that ends every text with an end-of-text token, as T5's does."
            )
        # Only texts that fill all places may have been longer: no others are tokenised twice.
        full = tokens.attention_mask.sum(dim=1) >= max_length
        _warn_if_truncated([text for text, is_full in zip(texts, full, strict=True) if is_full], tokenizer, max_length)
    return tokens.input_ids, tokens.attention_mask


def encode_tokens(
    tokens: torch.Tensor, mask: torch.Tensor, text_encoder: PreTrainedModel, device: torch.device
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return features `(B, L, width)`, zero at padding, and the mask `(B, L)` bool, of the result of `tokenize`."""
    mask = mask.to(device)
    features = text_encoder(tokens.to(device), attention_mask=mask).last_hidden_state
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
                f"A prompt has {num_tokens} tokens and was truncated after {max_length}; the rest is ignored: {text!r}"
            )


def pad_to_length(features: torch.Tensor, mask: torch.Tensor, length: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Pad features with zeros, and the mask with False, up to `length` tokens.

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
    """Encode the prompts of a request; this implements `encode_prompt` of the pipelines.

    Args:
        request: prompts, or precomputed features and masks.
        tokenizer: the tokenizer of the encoder; not needed for precomputed features.
        text_encoder: the encoder; not needed for precomputed features.
        device: device of the features.
        guided: whether to encode the negative prompts too.
        copies: n, how often the features of each prompt are repeated.

    Returns:
        Features `(B * n, L, width)` of the prompts and of the negative prompts, then their masks `(B * n, L)`.

    Raises:
        ValueError: there are prompts to encode, but no text encoder.
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
    """Return precomputed features `(B, L, width)`, zero at padding, and their mask; without a mask, every entry is a
    token.
    """
    embeds = embeds.to(device)
    mask = torch.ones(embeds.shape[:2], dtype=torch.bool) if mask is None else mask.bool()
    mask = mask.to(device)
    return embeds * mask.to(embeds.dtype)[..., None], mask


class SampleGroup(NamedTuple):
    """Samples of a batch that go through the model together.

    Attributes:
        samples: indices of the samples in the batch, None for all.
        columns: indices of the text tokens that are used, None for all.
        has_pads: whether any of these tokens is padding in one of these samples.
    """

    samples: torch.Tensor | None
    columns: torch.Tensor | None
    has_pads: bool


class Conditioning(NamedTuple):
    """Encoded prompts as returned by `encode_prompt`, class labels, or both; without guidance there are no negative
    ones.

    Attributes:
        prompt_embeds: `(B, L, width)`.
        negative_prompt_embeds: `(B, L, width)`.
        prompt_attention_mask: `(B, L)` bool, True for tokens.
        negative_prompt_attention_mask: `(B, L)` bool.
        class_labels: `(B,)` integers.
        negative_class_labels: `(B,)` integers, the null class by default.
    """

    prompt_embeds: torch.Tensor | None = None
    negative_prompt_embeds: torch.Tensor | None = None
    prompt_attention_mask: torch.Tensor | None = None
    negative_prompt_attention_mask: torch.Tensor | None = None
    class_labels: torch.Tensor | None = None
    negative_class_labels: torch.Tensor | None = None

    def select(self, group: SampleGroup) -> Conditioning:
        """Return the samples and tokens of a group."""
        samples = slice(None) if group.samples is None else group.samples
        columns = slice(None) if group.columns is None else group.columns
        kept = {name: entry[samples] for name, entry in self._asdict().items() if entry is not None}
        return self._replace(**{name: entry[:, columns] if entry.ndim > 1 else entry for name, entry in kept.items()})

    def model_inputs(self, *, guided: bool, has_pads: bool, dtype: torch.dtype) -> dict[str, Any]:
        """Return the arguments of a model call; with guidance, the unconditional half of the batch comes first.

        Args:
            guided: whether the model also runs on the negative entries.
            has_pads: whether the masks exclude any tokens.
            dtype: dtype of the text features.
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
                "Guidance was turned on during sampling, but there are no negative prompts: start with "
                "`guidance_scale` above 1."
            )
        return torch.cat([entries[f"negative_{name}"], entries[name]])


def group_samples_by_text(conditioning: Conditioning, *, own_columns: bool) -> list[SampleGroup]:
    """Divide a batch into groups of samples that can go through the model in one call.

    The published models do not mask padding in cross-attention: a short prompt would attend to padding that a longer
    prompt in the batch requires, and its image would depend on the batch. With `own_columns` every sample keeps only
    the tokens that it would have alone, so that prompts of different lengths need separate calls.

    Args:
        conditioning: conditions of the batch.
        own_columns: if False, the whole batch is one group and keeps all tokens.
    """
    both = (conditioning.prompt_attention_mask, conditioning.negative_prompt_attention_mask)
    masks = [mask for mask in both if mask is not None]
    if not masks:
        return [SampleGroup(samples=None, columns=None, has_pads=False)]
    taken = torch.stack(masks).any(dim=0)
    if not own_columns or bool(taken.all()):
        return [SampleGroup(samples=None, columns=None, has_pads=not all(bool(mask.all()) for mask in masks))]
    patterns, pattern_of_sample = torch.unique(taken, dim=0, return_inverse=True)
    groups = []
    for index, pattern in enumerate(patterns):
        samples, columns = (pattern_of_sample == index).nonzero()[:, 0], pattern.nonzero()[:, 0]
        has_pads = not all(bool(mask[samples][:, columns].all()) for mask in masks)
        groups.append(SampleGroup(samples, columns, has_pads))
    return groups


def spread_micro_conditioning(
    micro_conditioning: Mapping[str, Any] | None, num_images: int, device: torch.device
) -> MicroConditioning:
    """Convert micro-conditioning to `(2, B)`: for the unconditional half of the batch, then for the conditional half.

    Args:
        micro_conditioning: maps names to a number, B numbers (one per image) or 2 B (unconditional ones first).
            Missing names have the model's defaults.
        num_images: B.
        device: device of the result.
    """
    spread = {}
    for key, value in (micro_conditioning or {}).items():
        numbers = torch.as_tensor(value, dtype=torch.float32, device=device)
        spread[key] = (numbers.view(-1, num_images) if numbers.numel() > 1 else numbers).expand(2, num_images)
    return spread
