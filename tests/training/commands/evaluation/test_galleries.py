# SPDX-License-Identifier: Apache-2.0
"""What the emoji commands compare generated images with."""

from pathlib import Path

import pytest

from diffusers_mdm.evaluation.recall import motion
from diffusers_mdm.evaluation.retrieval import COMPARED_SIDE
from diffusers_mdm.training.commands.evaluation.galleries import load_class_gallery, load_clip_gallery, load_gallery

ROOT = Path(__file__).parents[4]


def test_a_missing_column_is_named():
    with pytest.raises(ValueError, match=r"no column 'kind'; it has .*subgroup"):
        load_class_gallery(ROOT / "training" / "data" / "emoji-styles-64", "kind")


def test_a_data_set_with_one_split_is_read(images_dir):
    pixels, texts = load_class_gallery(images_dir, "text")
    assert (pixels.shape, len(texts)) == ((12, 3, COMPARED_SIDE, COMPARED_SIDE), 12)
    with pytest.raises(ValueError, match="has no column 'kind'; it has image, text"):
        load_class_gallery(images_dir, "kind")
    with pytest.raises(ValueError, match="has no column 'style'"):
        load_gallery(images_dir)


def test_the_clips_of_a_split_are_read(clips_dir):
    gallery, captions = load_clip_gallery(clips_dir, num_frames=4)
    assert gallery.shape == (len(captions), 4, 3, 16, 16)
    assert (gallery.min(), gallery.max()) == (-1.0, 1.0)
    assert (motion(gallery) > 0).all()
    with pytest.raises(ValueError, match="no split 'validation'"):
        load_clip_gallery(clips_dir, num_frames=4, split="validation")
    with pytest.raises(ValueError, match="8 frames, expected at least 9"):
        load_clip_gallery(clips_dir, num_frames=9)
