# SPDX-License-Identifier: Apache-2.0
"""New text encoders, and saved ones of any kind."""

import dataclasses

import pytest
import torch
from transformers import (
    AutoTokenizer,
    BartConfig,
    BartModel,
    BertConfig,
    BertModel,
    CLIPConfig,
    CLIPModel,
    GPT2Config,
    GPT2Model,
    T5Config,
    T5ForConditionalGeneration,
)

from diffusers_mdm.training.modules.text_encoder import (
    build_text_encoder,
    check_text_width,
    count_text_parameters,
    frozen_text_encoder,
    load_text_encoder,
    train_tokenizer,
)
from diffusers_mdm.training.recipe.loading import load_recipe
from diffusers_mdm.training.recipe.text_encoder import TextEncoderRecipe, TokenizerRecipe
from tests.training.tiny_run import RECIPES

CAPTIONS = [f"{color} {shape}, flat icon" for color in ("red", "green") for shape in ("circle", "square", "heart")] * 4


def test_frequent_words_are_whole_and_texts_end():
    tokenizer = train_tokenizer(CAPTIONS, 200)
    tokens = tokenizer.convert_ids_to_tokens(tokenizer("Green heart, flat icon").input_ids)
    assert tokens == ["▁green", "▁heart", ",", "▁flat", "▁icon", "</s>"]
    assert tokenizer("").input_ids == [tokenizer.eos_token_id]


def test_saved_tokenizer_loads_as_any_other(tmp_path):
    tokenizer = train_tokenizer(CAPTIONS, 200)
    tokenizer.save_pretrained(tmp_path)
    loaded = AutoTokenizer.from_pretrained(tmp_path)
    texts = ["red circle", "a thread, flat icon"]
    assert loaded(texts, padding=True)["input_ids"] == tokenizer(texts, padding=True)["input_ids"]
    assert loaded.pad_token_id == tokenizer.pad_token_id == 0


def test_tokenizer_is_a_function_of_the_captions():
    first, second = train_tokenizer(CAPTIONS, 200), train_tokenizer(CAPTIONS, 200)
    assert first.get_vocab() == second.get_vocab()


def test_too_small_a_vocabulary_is_refused():
    with pytest.raises(ValueError, match="at least 64"):
        train_tokenizer(CAPTIONS, 10)


def test_pretrained_encoder_comes_back_as_saved(tmp_path):
    recipe = TextEncoderRecipe(
        tokenizer=TokenizerRecipe(200), d_model=16, num_layers=1, num_heads=2, d_ff=32, train_text_encoder=True
    )
    encoder, tokenizer = build_text_encoder(recipe, CAPTIONS)
    encoder.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    loaded, loaded_tokenizer = build_text_encoder(TextEncoderRecipe(pretrained=str(tmp_path)), [])
    ids = loaded_tokenizer(CAPTIONS[:2], return_tensors="pt").input_ids
    assert torch.equal(encoder.eval()(ids).last_hidden_state, loaded.eval()(ids).last_hidden_state)


LAYERS = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
SIZES = {**LAYERS, "vocab_size": 200, "intermediate_size": 16}
T5_SIZES = {"vocab_size": 200, "d_model": 16, "d_kv": 8, "d_ff": 16, "num_layers": 1, "num_heads": 2}
IMAGE_SIZES = {**LAYERS, "image_size": 8, "patch_size": 8}
SAVED = {
    "T5EncoderModel": lambda: T5ForConditionalGeneration(T5Config(**T5_SIZES)),
    "BertModel": lambda: BertModel(BertConfig(**SIZES)),
    "CLIPTextModel": lambda: CLIPModel(CLIPConfig(text_config=SIZES, vision_config=IMAGE_SIZES, projection_dim=8)),
    "GPT2Model": lambda: GPT2Model(GPT2Config(vocab_size=200, n_embd=16, n_layer=1, n_head=2)),
}


def saved_encoder(model, folder) -> str:
    model.save_pretrained(folder)
    train_tokenizer(CAPTIONS, 200).save_pretrained(folder)
    return str(folder)


@pytest.mark.parametrize("name", SAVED)
def test_every_encoder_loads_as_what_it_is(name, tmp_path):
    model = SAVED[name]()
    path = saved_encoder(model, tmp_path)
    encoder, tokenizer = load_text_encoder(path)
    assert type(encoder).__name__ == name
    features = encoder(**tokenizer(CAPTIONS[:2], return_tensors="pt", padding=True)).last_hidden_state
    assert features.shape[::2] == (2, 16)
    weights, whole = encoder.state_dict(), model.state_dict()
    assert any(torch.equal(value, other) for value in weights.values() for other in whole.values() if value.ndim == 2)
    recipe = dataclasses.replace(load_recipe(RECIPES / "tiny.yaml"), text_encoder=TextEncoderRecipe(pretrained=path))
    assert count_text_parameters(recipe) == sum(value.numel() for value in encoder.parameters())
    check_text_width(recipe, encoder)


def test_what_gives_no_features_of_texts_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"`text_encoder\.pretrained`: there is no text encoder"):
        load_text_encoder(str(tmp_path / "nothing"))
    sizes = {"d_model": 16, "encoder_layers": 1, "decoder_layers": 1, "encoder_ffn_dim": 16, "decoder_ffn_dim": 16}
    heads = {"encoder_attention_heads": 2, "decoder_attention_heads": 2, "vocab_size": 200}
    with pytest.raises(ValueError, match="is a bart, of which transformers cannot load only the encoder"):
        load_text_encoder(saved_encoder(BartModel(BartConfig(**sizes, **heads)), tmp_path))


def test_a_tokenizer_that_cannot_pad_is_refused(tmp_path):
    path = saved_encoder(SAVED["BertModel"](), tmp_path)
    tokenizer = AutoTokenizer.from_pretrained(path)
    tokenizer.pad_token = None
    tokenizer.save_pretrained(path)
    with pytest.raises(ValueError, match="no padding token"):
        load_text_encoder(path)


def test_features_of_another_width_are_refused():
    recipe = load_recipe(RECIPES / "tiny.yaml")
    with pytest.raises(ValueError, match=r"`model\.encoder_hid_dim` is 16, but .* width of 32"):
        check_text_width(recipe, BertModel(BertConfig(**{**SIZES, "hidden_size": 32})))


def test_texts_are_encoded_beforehand_only_by_an_encoder_that_stays():
    for name in ("tiny", "imagenet_64"):
        with pytest.raises(ValueError, match="not trained"):
            frozen_text_encoder(load_recipe(RECIPES / f"{name}.yaml"))
