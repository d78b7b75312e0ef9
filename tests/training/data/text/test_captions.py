# SPDX-License-Identifier: Apache-2.0
"""Captions that a tokenizer, a tracker, a card or a PNG text chunk may choke on."""

import pytest
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from diffusers_mdm.training.data.text.captions import MAX_CHARACTERS, clean_caption, clean_captions
from diffusers_mdm.training.modules.text_encoder import train_tokenizer

ORDINARY = ["a frog", "", "  two  spaces\nand a line\t", "café, naïve, ¿qué?", "青蛙 蛙", "🐸 👩‍🚀", "ضفدع", "a\u0301"]
ODD = {
    "ok \ud83d bad": "ok \ufffd bad",
    "\ud83d\udc38 joined": "🐸 joined",
    "nul\0, bell\a, escape\x1b[31m": "nul , bell , escape [31m",
    "\u202egnp.gorf\u202c": "gnp.gorf",
    "\ufeffmark": "mark",
    "one\u2028two\x85three": "one two three",
    "\uffff\ufdd0": "\ufffd\ufffd",
}


@pytest.mark.parametrize("caption", ORDINARY)
def test_ordinary_captions_stay_as_they_are(caption):
    assert clean_caption(caption) == caption


@pytest.mark.parametrize("caption", ODD)
def test_odd_captions_become_text(caption):
    assert clean_caption(caption) == ODD[caption]
    assert clean_caption(ODD[caption]) == ODD[caption]


def test_cleaned_captions_can_be_tokenized_and_stored(tmp_path):
    captions = [clean_caption(caption) for caption in (*ODD, "x" * 10**7)]
    assert max(map(len, captions)) == MAX_CHARACTERS
    tokenizer = train_tokenizer(ORDINARY, 100)
    assert len(tokenizer(captions, truncation=True, max_length=16).input_ids) == len(captions)
    texts = PngInfo()
    for number, caption in enumerate(captions):
        texts.add_itxt(f"caption {number}", caption)
    Image.new("RGB", (2, 2)).save(tmp_path / "picture.png", pnginfo=texts)
    with Image.open(tmp_path / "picture.png") as image:
        assert image.text["caption 0"] == captions[0]


def test_several_captions_and_none_are_allowed():
    assert clean_captions(None) == ""
    assert clean_captions(["a", None, "\0"]) == ["a", "", " "]


LOOP: list = []
LOOP.append(LOOP)


@pytest.mark.parametrize(
    "value", [5, 10**5000, 1.5, True, {"a": 1}, b"bytes", ["a", 5], LOOP], ids=lambda v: type(v).__name__
)
def test_what_is_no_text_is_refused_in_a_short_sentence(value):
    with pytest.raises(ValueError, match="a caption must be text, or a list of texts") as caught:
        clean_captions(value)
    assert len(str(caught.value)) < 200
