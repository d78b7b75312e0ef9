# SPDX-License-Identifier: Apache-2.0
"""From prompts to what the model attends to, and which pictures of a batch may go through the model together."""

from __future__ import annotations

import threading
from typing import Any, NamedTuple

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
        # Only texts that fill all places may have been longer: no others are tokenised twice.
        full = tokens.attention_mask.sum(dim=1) >= max_length
        _warn_if_truncated([text for text, is_full in zip(texts, full, strict=True) if is_full], tokenizer, max_length)
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


class RowGroup(NamedTuple):
    """Rows of a batch that go through the model together.

    Attributes:
        rows: which rows of the batch, None for all.
        columns: which tokens of the text they see, None for all.
        has_pads: whether any of these tokens is a pad in one of these batch rows.
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
        """Keep the batch rows and tokens of a group."""
        rows = slice(None) if group.rows is None else group.rows
        columns = slice(None) if group.columns is None else group.columns
        kept = {name: entry[rows] for name, entry in self._asdict().items() if entry is not None}
        return self._replace(**{name: entry[:, columns] if entry.ndim > 1 else entry for name, entry in kept.items()})

    def model_inputs(self, *, guided: bool, has_pads: bool, dtype: torch.dtype) -> dict[str, Any]:
        """Arguments of one model call: with guidance the unconditional half of the batch comes first.

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
    neighbour made necessary, and its picture would depend on the batch it is drawn in. With `own_columns` every batch
    row keeps only the tokens that it would have alone, so that rows of different lengths need calls of their own.

    Args:
        conditioning: what the batch is conditioned on.
        own_columns: False puts the whole batch into one group and keeps every token.
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
