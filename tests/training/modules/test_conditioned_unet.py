# SPDX-License-Identifier: Apache-2.0
"""Text encoder and U-Net as one module compute what they compute one after the other."""

import pytest
import torch

from diffusers_mdm.pipelines.drawing.conditioning import encode_texts
from diffusers_mdm.training.modules.conditioned_unet import ConditionedUNet
from tests.pipelines.tiny_pipeline import make_text_encoder, make_tokenizer, make_unet

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
