# SPDX-License-Identifier: Apache-2.0
"""A text encoder is loaded as it is, or made anew with all its sizes and trained."""

import pytest

from diffusers_mdm.training.recipe.text_encoder import TextEncoderRecipe, TokenizerRecipe

NEW = {
    "tokenizer": TokenizerRecipe(vocab_size=256),
    "d_model": 16,
    "num_layers": 1,
    "num_heads": 2,
    "d_ff": 32,
    "train_text_encoder": True,
}


def test_saved_and_new_ones_are_described():
    assert TextEncoderRecipe(pretrained="somebody/t5").train_text_encoder is False
    assert TextEncoderRecipe(from_pipeline=True, train_text_encoder=True).tokenizer is None
    assert TextEncoderRecipe(**NEW).d_model == 16


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({}, "a new text encoder needs `tokenizer`"),
        ({**NEW, "d_ff": None}, "a new text encoder needs"),
        ({**NEW, "train_text_encoder": False}, "`train_text_encoder: true`"),
        ({**NEW, "d_model": 15}, "`d_model` 15 must be a multiple of `num_heads` 2"),
        ({**NEW, "num_layers": 0}, "`num_layers`"),
        ({**NEW, "pretrained": "somebody/t5"}, "`pretrained` and `from_pipeline` load"),
        ({"pretrained": "somebody/t5", "from_pipeline": True}, "`pretrained` and `from_pipeline` each"),
        ({"pretrained": "somebody/t5", "max_sequence_length": 0}, "`max_sequence_length`"),
        ({"pretrained": "somebody/t5", "learning_rate_scale": 0.0}, "`learning_rate_scale`"),
    ],
)
def test_others_contradict_themselves(fields, message):
    with pytest.raises(ValueError, match=message):
        TextEncoderRecipe(**fields)


@pytest.mark.parametrize("size", [63, 2**22 + 1])
def test_a_vocabulary_has_room_for_letters_and_an_end(size):
    with pytest.raises(ValueError, match="`vocab_size`"):
        TokenizerRecipe(size)
