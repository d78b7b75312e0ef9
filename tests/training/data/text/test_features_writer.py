# SPDX-License-Identifier: Apache-2.0
"""Text features on disk: equal to what the encoder gives, each caption once, and continued after a stop."""

import dataclasses

import pytest
import torch

from diffusers_mdm.pipelines.drawing.conditioning import encode_texts
from diffusers_mdm.training.data.text import features_writer
from diffusers_mdm.training.data.text.features import TextEmbeddings, read_index
from diffusers_mdm.training.data.text.features_writer import (
    CaptionEncoder,
    batches_of_equal_length,
    write_text_embeddings,
)
from tests.pipelines.tiny_pipeline import make_text_encoder, make_tokenizer

CAPTIONS = ["a red apple", "the sad cat", "a dog", "a very long picture of the happy house", "a dog", "cat"]


@pytest.fixture
def encoder() -> CaptionEncoder:
    return CaptionEncoder("tiny", make_text_encoder(), make_tokenizer(), max_sequence_length=16, batch_size=2)


def test_what_is_read_is_what_the_encoder_gives(encoder, tmp_path):
    write_text_embeddings(tmp_path, CAPTIONS, encoder, captions_per_file=2)
    features = TextEmbeddings(tmp_path)
    embeds, mask = features.look_up([*CAPTIONS, ""])
    expected, expected_mask = encode_texts([*CAPTIONS, ""], encoder.tokenizer, encoder.text_encoder, "cpu", 16)
    assert torch.equal(mask, expected_mask.bool())
    torch.testing.assert_close(embeds, expected * expected_mask[..., None], rtol=1e-4, atol=1e-5)
    assert len(features) == 6  # "a dog" and the empty caption are there once
    assert list(read_index(tmp_path).files.values()) == [2, 2, 2]


def test_a_caption_does_not_depend_on_those_beside_it(encoder, tmp_path):
    write_text_embeddings(tmp_path / "alone", ["cat"], encoder)
    write_text_embeddings(tmp_path / "together", CAPTIONS, encoder)
    one, other = (TextEmbeddings(tmp_path / name).look_up(["cat"])[0] for name in ("alone", "together"))
    torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-6)


def test_long_captions_are_cut_where_the_run_cuts_them(encoder, tmp_path):
    short = dataclasses.replace(encoder, max_sequence_length=3)
    write_text_embeddings(tmp_path, CAPTIONS, short)
    assert int(TextEmbeddings(tmp_path, max_sequence_length=3).look_up(CAPTIONS)[1].sum(1).max()) == 3
    with pytest.raises(ValueError, match="truncated after 3 tokens"):
        TextEmbeddings(tmp_path, max_sequence_length=16)


def test_a_stopped_call_is_continued_and_its_files_are_kept(encoder, tmp_path, monkeypatch):
    written, left = features_writer.save_file, iter([True])

    def save_once(*arguments):
        if next(left, None) is None:
            raise OSError(28, "No space left on device")
        written(*arguments)

    monkeypatch.setattr(features_writer, "save_file", save_once)
    with pytest.raises(OSError, match="No space"):
        write_text_embeddings(tmp_path, CAPTIONS, encoder, captions_per_file=2)
    with pytest.raises(ValueError, match="incomplete"):
        TextEmbeddings(tmp_path)
    monkeypatch.setattr(features_writer, "save_file", written)
    first = (tmp_path / "embeddings-00000.safetensors").stat().st_mtime_ns
    write_text_embeddings(tmp_path, CAPTIONS, encoder, captions_per_file=2)
    assert (tmp_path / "embeddings-00000.safetensors").stat().st_mtime_ns == first
    assert all(caption in TextEmbeddings(tmp_path) for caption in CAPTIONS)


def test_new_captions_are_added_and_a_broken_file_is_written_anew(encoder, tmp_path, caplog):
    write_text_embeddings(tmp_path, CAPTIONS[:2], encoder)
    write_text_embeddings(tmp_path, ["happy house"], encoder)
    assert len(TextEmbeddings(tmp_path)) == 4
    (tmp_path / "embeddings-00000.safetensors").write_bytes(b"broken")
    write_text_embeddings(tmp_path, [*CAPTIONS, "happy house"], encoder)
    assert "is lost" in caplog.text
    features = TextEmbeddings(tmp_path)
    assert all(caption in features for caption in [*CAPTIONS, "happy house", ""])


@pytest.mark.parametrize(
    ("field", "message"), [("max_sequence_length", "max_sequence_length 16"), ("text_encoder", "fingerprint")]
)
def test_a_folder_belongs_to_one_encoder_and_its_settings(encoder, tmp_path, field, message):
    write_text_embeddings(tmp_path, CAPTIONS, encoder)
    other = make_text_encoder()
    with torch.no_grad():
        next(other.parameters()).add_(1)
    changed = dataclasses.replace(encoder, **{field: 8 if field == "max_sequence_length" else other})
    with pytest.raises(ValueError, match=message):
        write_text_embeddings(tmp_path, CAPTIONS, changed)


def test_batches_hold_texts_of_one_length():
    lengths = [3, 1, 3, 2, 3, 1]
    batches = list(batches_of_equal_length(lengths, 2))
    assert sorted(row for batch in batches for row in batch) == list(range(6))
    assert all(len(batch) <= 2 and len({lengths[row] for row in batch}) == 1 for batch in batches)
