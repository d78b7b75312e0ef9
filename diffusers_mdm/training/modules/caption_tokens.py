# SPDX-License-Identifier: Apache-2.0
"""The tokens of captions, each tokenised once: a small model would wait longer for its tokenizer than for itself."""

from __future__ import annotations

import numpy as np
import torch
from transformers import PreTrainedTokenizerBase

from ...pipelines.drawing.conditioning import tokenize

MAX_REMEMBERED = 200_000  # captions


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
        rows = [self._known[caption] for caption in captions]
        lengths = np.array([len(row) for row in rows])
        places = np.arange(lengths.max(initial=0))
        if self.tokenizer.padding_side == "left":
            places = places[::-1]
        mask = places < lengths[:, None]
        tokens = np.full(mask.shape, self.tokenizer.pad_token_id, dtype=np.int64)
        tokens[mask] = np.concatenate(rows)
        return torch.from_numpy(tokens), torch.from_numpy(mask).long()

    def _learn(self, captions: list[str]) -> None:
        if not captions:
            return
        tokens, mask = tokenize(captions, self.tokenizer, self.max_sequence_length)
        for caption, row, kept in zip(captions, tokens.numpy(), mask.bool().numpy(), strict=True):
            self._known[caption] = row[kept]
