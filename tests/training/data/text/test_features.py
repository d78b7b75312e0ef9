# SPDX-License-Identifier: Apache-2.0
"""What a folder of text features says of itself is checked before anything is trained on it."""

import json

import pytest

from diffusers_mdm.training.data.text.features import TextEmbeddings, caption_key
from diffusers_mdm.training.data.text.features_writer import CaptionEncoder, fingerprint, write_text_embeddings
from tests.pipelines.tiny_pipeline import make_text_encoder, make_tokenizer


@pytest.fixture(scope="module")
def encoder() -> CaptionEncoder:
    return CaptionEncoder("tiny", make_text_encoder(), make_tokenizer(), max_sequence_length=16)


@pytest.fixture
def folder(encoder, tmp_path):
    write_text_embeddings(tmp_path, ["a red apple", "odd \ud83d \0 text"], encoder)
    return tmp_path


def test_another_encoder_or_tokenizer_is_refused(encoder, folder):
    features = TextEmbeddings(folder)
    features.check_encoder("tiny", fingerprint(encoder.text_encoder, encoder.tokenizer))
    other = make_text_encoder()
    other.get_input_embeddings().weight.data[0, 0] += 1
    tokenizer = make_tokenizer()
    tokenizer.add_tokens(["anotherword"])
    for changed in (fingerprint(other, encoder.tokenizer), fingerprint(encoder.text_encoder, tokenizer)):
        with pytest.raises(ValueError, match=r"made with another text encoder or tokenizer \(tiny\) than .*\(mine\)"):
            features.check_encoder("mine", changed)


SPOILT = {
    "fingerprint": ("", "does not identify the text encoder.*an older version wrote it"),
    "format": (["x"] * 10**5, "has the format .*, expected"),
    "width": ("32", "`width` must be an integer"),
    "files": ({"../embeddings-00000.safetensors": 3}, "lists a file '../embeddings"),
    "is_complete": (1, "`is_complete` must be true or false"),
    "another": (1, "`another` is not a known field"),
}


@pytest.mark.parametrize("field", SPOILT)
def test_an_index_that_does_not_fit_is_refused_in_one_sentence(folder, field):
    path = folder / "index.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), field: SPOILT[field][0]}))
    with pytest.raises(ValueError, match=SPOILT[field][1]) as caught:
        TextEmbeddings(folder)
    assert len(str(caught.value)) < 700


@pytest.mark.parametrize("content", ["", "[]", "{", "null"])
def test_what_is_no_index_says_how_one_is_written(folder, content):
    (folder / "index.json").write_text(content)
    with pytest.raises(ValueError, match=r"index\.json"):
        TextEmbeddings(folder)


def test_odd_captions_are_found_by_what_they_are_cleaned_to(folder):
    features = TextEmbeddings(folder)
    assert "odd \ud83d \0 text" in features
    assert "odd \ufffd   text" in features
    assert caption_key("a red apple") != caption_key("a red apple ")
