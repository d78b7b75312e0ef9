# SPDX-License-Identifier: Apache-2.0
"""Text encoder and U-Net as one module compute what they compute one after the other."""

import pytest
import torch

from diffusers_mdm.pipelines.drawing.conditioning import encode_texts, tokenize
from diffusers_mdm.training.modules import conditioned_unet
from diffusers_mdm.training.modules.conditioned_unet import CaptionTokens, ConditionedUNet
from tests.pipelines.tiny_pipeline import make_text_encoder, make_tokenizer, make_unet

BATCHES = [["a red apple", "the sad cat", ""], ["the sad cat", "a", "the sad cat"], [""], ["a red apple", "a red cat"]]
TEXTS = ["a red apple", "the sad cat"]


@pytest.fixture(scope="module")
def model() -> ConditionedUNet:
    return ConditionedUNet(make_unet(), make_text_encoder(), make_tokenizer(), max_sequence_length=3)


@pytest.fixture
def inputs() -> tuple[list[torch.Tensor], torch.Tensor]:
    return [torch.randn(2, 3, 8, 8), torch.randn(2, 3, 16, 16)], torch.tensor([3, 700])


def test_captions_are_encoded_with_gradients_and_cut_to_length(model, inputs):
    predictions = model(*inputs, captions=TEXTS)
    embeds, mask = encode_texts(TEXTS, model.tokenizer, model.text_encoder, torch.device("cpu"), 3)
    assert embeds.shape[1] == 3
    again = model(*inputs, prompt_embeds=embeds, prompt_attention_mask=mask)
    assert all(torch.equal(one, other) for one, other in zip(predictions, again, strict=True))
    sum(level.sum() for level in predictions).backward()
    gradients = [parameter.grad for parameter in model.text_encoder.parameters()]
    assert any(gradient is not None and bool(gradient.abs().sum() > 0) for gradient in gradients)


def test_the_encoder_comes_first_and_only_where_it_is_trained(model):
    names = [name for name, _ in model.named_parameters()]
    assert names == sorted(names, key=lambda name: name.startswith("unet."))
    alone = ConditionedUNet(model.unet)
    assert {name.partition(".")[0] for name, _ in alone.named_parameters()} == {"unet"}


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

    monkeypatch.setattr(conditioned_unet, "tokenize", counted)
    tokens = CaptionTokens(make_tokenizer(), 16)
    for captions in BATCHES:
        tokens.of(captions)
    assert sorted(seen) == sorted({caption for captions in BATCHES for caption in captions})


def test_memory_is_bounded(monkeypatch):
    monkeypatch.setattr(conditioned_unet, "MAX_REMEMBERED", 3)
    tokenizer = make_tokenizer()
    tokens = CaptionTokens(tokenizer, 16)
    for captions in BATCHES * 2:
        assert torch.equal(tokens.of(captions)[0], tokenize(captions, tokenizer, 16)[0])
        assert len(tokens._known) <= 3


def test_lone_surrogates_are_refused():
    with pytest.raises(ValueError, match="lone surrogate"):
        CaptionTokens(make_tokenizer(), 16).of(["a", "\ud800"])
