# SPDX-License-Identifier: Apache-2.0
import pytest
import torch
from transformers import AutoTokenizer

from diffusers_mdm.training.modules.text_encoder import build_text_encoder, train_tokenizer
from diffusers_mdm.training.recipe.text_encoder import TextEncoderRecipe, TokenizerRecipe

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
