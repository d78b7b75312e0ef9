# SPDX-License-Identifier: Apache-2.0
"""Prompts become features: alone, with any encoder, with gradients, with pads that are zero."""

import logging

import pytest
import torch
from diffusers.utils import logging as host_logging
from tokenizers import processors
from transformers import BertConfig, BertModel, CLIPTextConfig, CLIPTextModel

from diffusers_mdm import MDMPipeline
from diffusers_mdm.pipelines.drawing.conditioning import encode_texts
from tests.pipelines.tiny_pipeline import TEXT_WIDTH, WORDS, draw, make_text_encoder, make_tokenizer, seed

VOCABULARY = len(WORDS) + 3


@pytest.fixture
def text_pipe() -> MDMPipeline:
    """Nothing but a text encoder and its tokenizer."""
    return MDMPipeline(text_encoder=make_text_encoder(), tokenizer=make_tokenizer(), unet=None, scheduler=None)


def test_it_works_in_isolation(pipe, text_pipe):
    embeds, negative_embeds, mask, negative_mask = text_pipe.encode_prompt("a red apple")
    from_features = draw(
        pipe,
        prompt_embeds=embeds,
        negative_prompt_embeds=negative_embeds,
        prompt_attention_mask=mask,
        negative_prompt_attention_mask=negative_mask,
    )
    torch.testing.assert_close(from_features, draw(pipe), atol=1e-5, rtol=0)


def test_pads_are_zero_and_masked(text_pipe):
    embeds, negative_embeds, mask, negative_mask = text_pipe.encode_prompt(["red", "a very sad dog"])
    assert mask.dtype == torch.bool
    assert mask.sum(dim=1).tolist() == [2, 5]
    assert negative_mask.sum(dim=1).tolist() == [1, 1]
    assert embeds.shape == negative_embeds.shape == (2, 5, TEXT_WIDTH)
    assert embeds[~mask].abs().max() == 0
    assert negative_embeds[~negative_mask].abs().max() == 0
    assert embeds[mask].abs().min() > 0


def test_without_guidance_there_are_no_negatives(text_pipe):
    embeds, negative_embeds, mask, negative_mask = text_pipe.encode_prompt("a", do_classifier_free_guidance=False)
    assert embeds.shape[:2] == mask.shape == (1, 2)
    assert negative_embeds is None
    assert negative_mask is None


def test_rows_are_repeated_for_each_image(text_pipe):
    embeds = text_pipe.encode_prompt(["red", "blue"], num_images_per_prompt=2)[0]
    assert torch.equal(embeds[0], embeds[1])
    assert torch.equal(embeds[2], embeds[3])
    assert not torch.equal(embeds[0], embeds[2])


def test_given_features_are_masked_and_padded_to_the_negatives(text_pipe):
    features, mask = torch.ones(1, 2, TEXT_WIDTH), torch.tensor([[1, 0]])
    embeds, negative_embeds, mask, _ = text_pipe.encode_prompt(
        negative_prompt="a very sad dog", prompt_embeds=features, prompt_attention_mask=mask
    )
    assert embeds.shape == negative_embeds.shape == (1, 5, TEXT_WIDTH)
    assert mask.tolist() == [[True, False, False, False, False]]
    assert embeds[0, 1:].abs().max() == 0


def test_gradients_reach_the_text_encoder(text_pipe):
    text_pipe.encode_prompt(["red", "a cat"], do_classifier_free_guidance=False)[0].square().sum().backward()
    gradients = [parameter.grad for parameter in text_pipe.text_encoder.parameters()]
    assert all(gradient is not None and torch.isfinite(gradient).all() for gradient in gradients)


def test_long_prompts_are_cut_with_a_warning(text_pipe, caplog):
    host_logging.enable_propagation()
    with caplog.at_level(logging.WARNING):
        embeds = text_pipe.encode_prompt("very " * 20, max_sequence_length=8, do_classifier_free_guidance=False)[0]
    host_logging.disable_propagation()
    assert embeds.shape[1] == 8
    assert "21 tokens and was truncated after 8" in caplog.text
    assert text_pipe.encode_prompt("very " * 900)[0].shape[1] == text_pipe.tokenizer.model_max_length


def test_only_texts_that_may_have_been_cut_are_tokenised_twice():
    read: list[str] = []
    tokenizer = make_tokenizer()

    class Counting:
        model_max_length = tokenizer.model_max_length

        def __call__(self, texts, **options):
            read.extend([texts] if isinstance(texts, str) else texts)
            return tokenizer(texts, **options)

    with torch.no_grad():
        encode_texts(["a cat", "very long picture of"], Counting(), make_text_encoder(), torch.device("cpu"), 5)
    assert sorted(read) == ["a cat", "very long picture of", "very long picture of"]


@pytest.mark.parametrize("kind", ["clip", "bert"])
def test_other_text_encoders(pipe, kind):
    sizes = {"hidden_size": TEXT_WIDTH, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    if kind == "clip":
        pipe.text_encoder = CLIPTextModel(CLIPTextConfig(vocab_size=VOCABULARY, eos_token_id=1, **sizes)).eval()
    else:
        pipe.text_encoder = BertModel(BertConfig(vocab_size=VOCABULARY, **sizes)).eval()
    images = draw(pipe, prompt=["red", "a very sad dog"], generator=[seed(0), seed(1)])
    assert torch.isfinite(images).all()
    assert not torch.equal(draw(pipe, prompt="red"), draw(pipe, prompt="blue"))


def test_pads_among_given_features_are_the_callers_choice(pipe):
    """The published models see pads in their cross-attention: whoever gives features decides how many."""
    embeds, negative_embeds, mask, negative_mask = pipe.encode_prompt(["red", "a very sad dog"])
    first = {
        "prompt_embeds": embeds[:1],
        "negative_prompt_embeds": negative_embeds[:1],
        "prompt_attention_mask": mask[:1],
        "negative_prompt_attention_mask": negative_mask[:1],
    }
    assert not torch.allclose(draw(pipe, **first), draw(pipe, prompt="red"), atol=1e-4)


def test_a_pipeline_without_text_encoder_says_so(pipe):
    pipe.text_encoder = None
    with pytest.raises(ValueError, match="no text encoder"):
        draw(pipe)


def test_a_tokenizer_without_an_end_of_text_token_is_named(text_pipe):
    tokenizer = make_tokenizer()
    tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(single="$A", special_tokens=[])
    with pytest.raises(ValueError, match=r"no token for ''.*end-of-text"):
        encode_texts([""], tokenizer, text_pipe.text_encoder, torch.device("cpu"), 64)
    features, mask = encode_texts(["red", ""], tokenizer, text_pipe.text_encoder, torch.device("cpu"), 64)
    assert mask.sum(dim=1).tolist() == [1, 0]
    assert not features[1].any()
