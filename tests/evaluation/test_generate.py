# SPDX-License-Identifier: Apache-2.0
"""Generating images for captions into a folder: every level, resuming, independence of the batch."""

import json

import pytest
import torch
from PIL import Image

from diffusers_mdm.evaluation import generate as generate_module
from diffusers_mdm.evaluation.generate import generate, open_levels
from tests.pipelines.tiny_pipeline import make_pipeline

CAPTIONS = ["a red apple", "the blue cat", "a sad dog", 'a "green" house\nvery long', "a red apple"]
SETTINGS = {"num_inference_steps": 2, "guidance_scale": 3.0}


@pytest.fixture(scope="module")
def pipeline():
    return make_pipeline()


def run(pipeline, folder, captions=CAPTIONS, **changes):
    return generate(pipeline, captions, folder, **{"batch_size": 2, "settings": SETTINGS, **changes})


def pixels(level):
    return level.load(range(len(level))).int()


def test_every_level_is_a_captioned_folder(pipeline, tmp_path):
    folders = run(pipeline, tmp_path / "drawn", seed=7)
    assert [folder.name for folder in folders] == ["8", "16"]
    inner, outer = open_levels(tmp_path / "drawn")
    assert list(inner.captions) == list(outer.captions) == CAPTIONS
    assert pixels(inner).shape == (5, 3, 8, 8)
    assert pixels(outer).shape == (5, 3, 16, 16)
    lines = (folders[0] / "metadata.jsonl").read_text(encoding="utf-8").splitlines()
    assert [json.loads(line)["seed"] for line in lines] == [7, 8, 9, 10, 11]
    # The same caption with another seed gives another image.
    assert not torch.equal(pixels(outer)[0], pixels(outer)[4])


def test_images_do_not_depend_on_the_batch(pipeline, tmp_path):
    run(pipeline, tmp_path / "two")
    run(pipeline, tmp_path / "three", batch_size=3)
    for first, second in zip(open_levels(tmp_path / "two"), open_levels(tmp_path / "three"), strict=True):
        assert (pixels(first) - pixels(second)).abs().max() <= 1  # rounding may fall to either side of a step


def test_existing_images_are_not_generated_again(pipeline, tmp_path):
    folder = tmp_path / "drawn"
    run(pipeline, folder)
    expected = [pixels(level) for level in open_levels(folder)]
    marked = Image.new("RGB", (8, 8), "red")
    marked.save(folder / "8" / "000000.png")  # kept, because the drawing is there at every level
    (folder / "16" / "000003.png").unlink()  # drawn again
    (folder / "8" / "metadata.jsonl").unlink()
    run(pipeline, folder)
    inner, outer = open_levels(folder)
    assert (pixels(outer) - expected[1]).abs().max() <= 1
    assert inner.load([0])[0, :, 0, 0].tolist() == [255, 0, 0]


def test_a_folder_is_not_continued_with_other_arguments(pipeline, tmp_path):
    folder = tmp_path / "drawn"
    run(pipeline, folder)
    for changes in ({"seed": 1}, {"settings": {"num_inference_steps": 3}}, {"captions": CAPTIONS[:2]}, {"model": "b"}):
        with pytest.raises(ValueError, match=r"generated with other arguments \(.+ differ\); choose another folder"):
            run(pipeline, folder, **changes)
    (folder / "generation.json").write_text("{", encoding="utf-8")
    with pytest.raises(ValueError, match="cannot be read"):
        run(pipeline, folder)


def test_other_folders_are_refused(pipeline, tmp_path):
    (tmp_path / "letter.txt").write_text("dear", encoding="utf-8")
    with pytest.raises(ValueError, match=r"is not empty and has no generation\.json"):
        run(pipeline, tmp_path)
    with pytest.raises(ValueError, match="no captions to generate"):
        run(pipeline, tmp_path / "none", captions=[])


def test_unfinished_folders_are_refused(pipeline, tmp_path, monkeypatch):
    def stop(*args):
        raise KeyboardInterrupt

    folder = tmp_path / "drawn"
    monkeypatch.setattr(generate_module, "write_metadata", stop)
    with pytest.raises(KeyboardInterrupt):
        run(pipeline, folder)
    with pytest.raises(ValueError, match="is not finished; run the same"):
        open_levels(folder)
    with pytest.raises(ValueError, match="was not written by"):
        open_levels(tmp_path)
