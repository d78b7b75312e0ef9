# SPDX-License-Identifier: Apache-2.0
"""Remembered tokens are those of the tokenizer."""

import pytest
import torch

from diffusers_mdm.pipelines.drawing.conditioning import tokenize
from diffusers_mdm.training.modules import caption_tokens
from diffusers_mdm.training.modules.caption_tokens import CaptionTokens
from tests.pipelines.tiny_pipeline import make_tokenizer

BATCHES = [["a red apple", "the sad cat", ""], ["the sad cat", "a", "the sad cat"], [""], ["a red apple", "a red cat"]]


@pytest.mark.parametrize("side", ["right", "left"])
@pytest.mark.parametrize("length", [2, 16])
def test_every_batch_has_the_tokens_of_the_tokenizer(side, length):
    tokenizer = make_tokenizer()
    tokenizer.padding_side = side
    tokens = CaptionTokens(tokenizer, length)
    for captions in BATCHES:
        for found, expected in zip(tokens.of(captions), tokenize(captions, tokenizer, length), strict=True):
            assert torch.equal(found, expected)
            assert found.dtype == expected.dtype


def test_captions_are_tokenised_once(monkeypatch):
    seen: list[str] = []

    def counted(texts, *arguments):
        seen.extend(texts)
        return tokenize(texts, *arguments)

    monkeypatch.setattr(caption_tokens, "tokenize", counted)
    tokens = CaptionTokens(make_tokenizer(), 16)
    for captions in BATCHES:
        tokens.of(captions)
    assert sorted(seen) == sorted({caption for captions in BATCHES for caption in captions})


def test_memory_is_bounded(monkeypatch):
    monkeypatch.setattr(caption_tokens, "MAX_REMEMBERED", 3)
    tokenizer = make_tokenizer()
    tokens = CaptionTokens(tokenizer, 16)
    for captions in BATCHES * 2:
        assert torch.equal(tokens.of(captions)[0], tokenize(captions, tokenizer, 16)[0])
        assert len(tokens._known) <= 3


def test_lone_surrogates_are_refused():
    with pytest.raises(ValueError, match="lone surrogate"):
        CaptionTokens(make_tokenizer(), 16).of(["a", "\ud800"])
