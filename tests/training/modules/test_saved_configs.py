# SPDX-License-Identifier: Apache-2.0
"""Saved components do not tell where they were loaded from, nor what a tokenizer saw last."""

import json

import torch
from transformers import ByT5Tokenizer, T5Config, T5EncoderModel

from diffusers_mdm import LevelConfig, NestedUNetModel
from diffusers_mdm.training.modules.saved_configs import forget_last_call, forget_origin
from diffusers_mdm.training.modules.text_encoder import train_tokenizer
from diffusers_mdm.training.recipe.loading import load_recipe
from tests.training.tiny_run import RECIPES


def texts_of(folder):
    return {path.name: path.read_text() for path in folder.rglob("*.json")}


def test_unet_forgets_where_it_came_from_and_nothing_else(tmp_path):
    recipe = load_recipe(RECIPES / "tiny.yaml")
    NestedUNetModel(**recipe.model, **LevelConfig.columns_from(recipe.level_configs[:1])).save_pretrained(
        tmp_path / "origin"
    )
    loaded = NestedUNetModel.from_pretrained(tmp_path / "origin")
    grown = loaded.add_level(recipe.level_configs[1])
    for name, model in (("loaded", loaded), ("grown", grown)):
        model.save_pretrained(tmp_path / name)
        before = json.loads((tmp_path / name / "config.json").read_text())
        assert before.pop("_name_or_path") == str(tmp_path / "origin")  # else there would be nothing to forget
        forget_origin(model)
        model.save_pretrained(tmp_path / name)
        assert json.loads((tmp_path / name / "config.json").read_text()) == before
        assert model.config.sample_size == recipe.sample_size


def test_text_encoder_forgets_where_it_came_from(tmp_path):
    T5EncoderModel(T5Config(vocab_size=8, d_model=8, d_kv=4, d_ff=8, num_layers=1, num_heads=2)).save_pretrained(
        tmp_path / "origin"
    )
    encoder = T5EncoderModel.from_pretrained(tmp_path / "origin")
    assert encoder.config.name_or_path == str(tmp_path / "origin")
    forget_origin(encoder)
    assert encoder.config.name_or_path == encoder.name_or_path == ""
    encoder.save_pretrained(tmp_path / "saved")
    assert not any(str(tmp_path) in text for text in texts_of(tmp_path / "saved").values())


def test_modules_without_a_config_are_left_alone():
    forget_origin(torch.nn.Linear(2, 2))


def test_tokenizers_are_saved_as_they_were_before_any_call(tmp_path):
    tokenizer = train_tokenizer(["a frog", "two toads"] * 4, 64)
    tokenizer.save_pretrained(tmp_path / "new")
    expected = tokenizer(["a frog and two toads", "a frog"], padding="max_length", truncation=True, max_length=4)
    tokenizer.save_pretrained(tmp_path / "used")
    assert texts_of(tmp_path / "used") != texts_of(tmp_path / "new")  # else there would be nothing to forget
    forget_last_call(tokenizer)
    tokenizer.save_pretrained(tmp_path / "forgetful")
    assert texts_of(tmp_path / "forgetful") == texts_of(tmp_path / "new")
    again = tokenizer(["a frog and two toads", "a frog"], padding="max_length", truncation=True, max_length=4)
    assert again.data == expected.data


def test_tokenizers_in_python_have_nothing_to_forget():
    tokenizer = ByT5Tokenizer()
    before = tokenizer("a frog").input_ids
    forget_last_call(tokenizer)
    assert tokenizer("a frog").input_ids == before
