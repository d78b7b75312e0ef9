# SPDX-License-Identifier: Apache-2.0
"""References: the round trip, the levels, and broken folders."""

import json

import pytest
import torch

from diffusers_mdm.evaluation.images import average_down
from diffusers_mdm.evaluation.reference import load_reference, make_reference, save_reference
from tests.evaluation.tiny_images import MeanColours, random_images


@pytest.fixture
def reference():
    return make_reference(random_images(7), [MeanColours()], (16, 32), batch_size=3, recipe={"path": "here"})


def test_each_level_has_its_own_features(reference):
    pixels = random_images(7).pixels
    assert reference.sides == [16, 32]
    torch.testing.assert_close(reference.features["inception", 16], MeanColours()(average_down(pixels, 16)))
    torch.testing.assert_close(reference.features["inception", 32], MeanColours()(pixels))
    assert reference.recipe == {"path": "here", "num_images": 7}


def test_round_trip(reference, tmp_path):
    save_reference(reference, tmp_path / "reference")
    read = load_reference(tmp_path / "reference")
    assert (read.captions, read.fingerprints, read.recipe) == (
        reference.captions,
        reference.fingerprints,
        reference.recipe,
    )
    assert torch.equal(read.thumbnails, reference.thumbnails)
    assert read.features.keys() == reference.features.keys()
    assert all(torch.equal(read.features[key], rows) for key, rows in reference.features.items())
    save_reference(reference, tmp_path / "reference")  # again, over itself


def test_other_folders_are_refused(reference, tmp_path):
    (tmp_path / "letter.txt").write_text("dear", encoding="utf-8")
    with pytest.raises(ValueError, match="does not contain a reference; choose another folder"):
        save_reference(reference, tmp_path)


def test_broken_references_are_named(reference, tmp_path):
    with pytest.raises(ValueError, match=r"is not a reference: reference.json is missing"):
        load_reference(tmp_path)
    save_reference(reference, tmp_path)
    (tmp_path / "features.safetensors").write_bytes(b"\x08\0\0\0\0\0\0\0{}")
    with pytest.raises(ValueError, match=r"cannot be used: .*Make it again"):
        load_reference(tmp_path)
    save_reference(reference, tmp_path)
    description = json.loads((tmp_path / "reference.json").read_text(encoding="utf-8"))
    for change in ({"format": 9}, {"captions": ["one"]}, {"fingerprints": 3}):
        (tmp_path / "reference.json").write_text(json.dumps(description | change), encoding="utf-8")
        with pytest.raises(ValueError, match="cannot be used"):
            load_reference(tmp_path)


def test_an_empty_set_is_refused():
    with pytest.raises(ValueError, match="needs images, and there are none"):
        make_reference(random_images(0), [MeanColours()], (16,))
