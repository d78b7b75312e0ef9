# SPDX-License-Identifier: Apache-2.0
"""From prompts to the text features that the model attends to."""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from diffusers.utils import logging
from transformers import PreTrainedModel, PreTrainedTokenizerBase

logger = logging.get_logger(__name__)


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


class TextFeatures(NamedTuple):
    """Encoded prompts as `encode_prompt` returns them; the negative ones are None without guidance.

    Attributes:
        prompt_embeds: `(B, L, width)`.
        negative_prompt_embeds: `(B, L, width)`.
        prompt_attention_mask: `(B, L)` bool, True where there is a token.
        negative_prompt_attention_mask: `(B, L)` bool.
    """

    prompt_embeds: torch.Tensor
    negative_prompt_embeds: torch.Tensor | None
    prompt_attention_mask: torch.Tensor
    negative_prompt_attention_mask: torch.Tensor | None

    def select(self, group: RowGroup) -> TextFeatures:
        """Keep the rows and columns of a group."""
        rows = slice(None) if group.rows is None else group.rows
        columns = slice(None) if group.columns is None else group.columns
        kept = {name: entry[rows][:, columns] for name, entry in self._asdict().items() if entry is not None}
        return self._replace(**kept)

    def stack(self, guided: bool) -> tuple[torch.Tensor, torch.Tensor]:
        """Features and mask of one model call: with guidance the unconditional rows come first."""
        if not guided:
            return self.prompt_embeds, self.prompt_attention_mask
        if self.negative_prompt_embeds is None or self.negative_prompt_attention_mask is None:
            raise ValueError(
                "Guidance was turned on while drawing, but there are no negative prompts: start with "
                "`guidance_scale` above 1."
            )
        return (
            torch.cat([self.negative_prompt_embeds, self.prompt_embeds]),
            torch.cat([self.negative_prompt_attention_mask, self.prompt_attention_mask]),
        )


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


def group_rows_by_text(text: TextFeatures, *, own_columns: bool) -> list[RowGroup]:
    """Split a batch into the parts that one model call may take together.

    Published models do not mask pads in their cross-attention: a short prompt would see the pads that a longer
    neighbour made necessary, and its picture would depend on the batch it is drawn in. With `own_columns` every row
    keeps only the columns it would have in a batch of its own, so rows with different columns need their own call.

    Args:
        text: what the batch is conditioned on.
        own_columns: False puts all rows into one group and keeps every column.
    """
    masks = [mask for mask in (text.prompt_attention_mask, text.negative_prompt_attention_mask) if mask is not None]
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
