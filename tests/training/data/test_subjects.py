# SPDX-License-Identifier: Apache-2.0
"""A subject beside its class: who takes which turn, with what weight, and where the class images come from."""

import dataclasses
import io
import itertools

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from PIL import Image

from diffusers_mdm.training.data import subjects as prior_preservation
from diffusers_mdm.training.data.order import BatchOrder
from diffusers_mdm.training.data.sources import open_training_images
from diffusers_mdm.training.data.subjects import (
    CLASS,
    SUBJECT,
    missing_class_images,
    open_subject_images,
    part_and_number,
    prepare_class_images,
)
from diffusers_mdm.training.recipe.data import DataRecipe
from diffusers_mdm.training.recipe.recipe import PretrainedRecipe, PriorRecipe, Recipe
from diffusers_mdm.training.recipe.text_encoder import TextEncoderRecipe
from tests.training.tiny_run import tiny_recipe

SUBJECTS = ("black", "gray", "white")
COLORS = ("red", "green", "blue", "orange", "purple")


def write_plain_images(folder, colors) -> None:
    folder.mkdir(parents=True)
    for color in colors:
        Image.new("RGB", (8, 8), color).save(folder / f"{color}.png")


def subject_recipe(folder, pretrained=None, **prior) -> Recipe:
    settings = {"num_class_images": len(COLORS), "weight": 0.25, **prior}
    return dataclasses.replace(
        tiny_recipe(folder / "subject"),
        data=DataRecipe(path=str(folder / "subject"), caption="a sks square"),
        pretrained=PretrainedRecipe(str(pretrained or "somewhere")),
        text_encoder=TextEncoderRecipe(from_pipeline=True),
        prior_preservation=PriorRecipe(str(folder / "class"), "a square", **settings),
    )


@pytest.fixture
def folder(tmp_path):
    write_plain_images(tmp_path / "subject", SUBJECTS)
    write_plain_images(tmp_path / "class", COLORS)
    return tmp_path


# --- turns ---


@pytest.mark.parametrize("places_per_step", [1, 2, 3, 4, 5, 8])
def test_subject_and_class_take_turns_and_each_goes_through_its_own_stream(places_per_step):
    places = range(6 * places_per_step)
    found = [part_and_number(place, places_per_step) for place in places]
    for part in (SUBJECT, CLASS):
        assert [number for kind, number in found if kind == part] == list(range(len(places) // 2))
    for step in range(6):
        parts = [kind for kind, _ in found[step * places_per_step : (step + 1) * places_per_step]]
        assert parts == [(step + offset) % 2 for offset in range(places_per_step)]


def test_the_mean_over_weighted_rows_is_that_of_the_paper(folder):
    images = open_subject_images(subject_recipe(folder), 8)
    errors = torch.rand(8, generator=torch.Generator().manual_seed(0))
    weights = images.sample_weights(torch.arange(8, 16), places_per_step=8)
    is_class = torch.tensor([part_and_number(place, 8)[0] == CLASS for place in range(8, 16)])
    expected = errors[~is_class].mean() + 0.25 * errors[is_class].mean()
    torch.testing.assert_close((weights * errors).mean(), expected)


def test_batches_hold_both_with_their_own_captions_and_images(folder):
    images = open_subject_images(subject_recipe(folder), 8)
    order = BatchOrder(batch_size=4, seed=3)
    seen = {SUBJECT: set(), CLASS: set()}
    for batch in itertools.islice(images.batches(order), 8):
        parts = [part_and_number(place, 4)[0] for place in batch.positions.tolist()]
        assert sorted(parts) == [SUBJECT, SUBJECT, CLASS, CLASS]
        assert batch.captions == ["a square" if part == CLASS else "a sks square" for part in parts]
        assert batch.sample_weights.tolist() == [0.5 if part == CLASS else 2.0 for part in parts]
        for part, pixels in zip(parts, batch.pixels, strict=True):
            seen[part].add(tuple(pixels[:, 0, 0].tolist()))
    assert seen[SUBJECT] == {(0, 0, 0), (128, 128, 128), (255, 255, 255)}
    assert len(seen[CLASS]) == len(COLORS)
    assert not seen[SUBJECT] & seen[CLASS]


def test_a_later_step_and_another_division_give_the_same_rows(folder):
    images = open_subject_images(subject_recipe(folder), 8)
    steps = list(itertools.islice(images.batches(BatchOrder(batch_size=4, seed=3)), 3))
    later = next(images.batches(BatchOrder(batch_size=4, seed=3), start_step=2))
    assert torch.equal(later.pixels, steps[2].pixels)
    halves = [next(images.batches(BatchOrder(2, 1, rank, 2, seed=3), start_step=2)) for rank in (0, 1)]
    rows = {
        place: pixels for half in halves for place, pixels in zip(half.positions.tolist(), half.pixels, strict=True)
    }
    for place, pixels in zip(later.positions.tolist(), later.pixels, strict=True):
        assert torch.equal(rows[place], pixels)


def test_workers_read_the_same_where_images_are_not_kept(folder):
    recipe = subject_recipe(folder)
    random_crops = dataclasses.replace(recipe, data=dataclasses.replace(recipe.data, center_crop=False))
    images = open_subject_images(random_crops, 8)
    assert images.images.kept is None
    kept = open_subject_images(recipe, 8)
    order = BatchOrder(batch_size=4, seed=3)
    # The images are square and of one colour, so that a random crop is the whole.
    for read, held in zip(itertools.islice(images.batches(order), 2), kept.batches(order), strict=False):
        assert torch.equal(read.pixels, held.pixels)
        assert torch.equal(read.sample_weights, held.sample_weights)


def test_shards_and_recipes_without_it_are_refused(folder):
    recipe = subject_recipe(folder)
    with pytest.raises(ValueError, match="prior_preservation"):
        dataclasses.replace(recipe, data=DataRecipe(shards=("a.tar",)))
    with pytest.raises(ValueError, match="prior_preservation"):
        open_subject_images(dataclasses.replace(recipe, prior_preservation=None), 8)


def test_a_broken_class_image_is_replaced_by_another_of_its_class(folder):
    (folder / "class" / "red.png").write_bytes(b"not a picture")
    images = open_subject_images(subject_recipe(folder), 8)
    for batch in itertools.islice(images.batches(BatchOrder(batch_size=4, seed=3)), 6):
        for caption, pixels in zip(batch.captions, batch.pixels, strict=True):
            is_gray = bool((pixels.amax(0) == pixels.amin(0)).all())
            assert is_gray == (caption == "a sks square")
    assert len(images.skipped) > 0


# --- the class images ---


def test_what_is_missing_is_counted_beside_the_users_own_images(tmp_path):
    prior = PriorRecipe(str(tmp_path / "class"), "a square", num_class_images=6)
    assert missing_class_images(prior) == [0, 1, 2, 3, 4, 5]
    write_plain_images(tmp_path / "class", ("red", "green"))
    (tmp_path / "class" / "notes.txt").write_text("not a picture")
    (tmp_path / "class" / ".unfinished-3").write_text("half a picture")
    assert missing_class_images(prior) == [0, 1, 2, 3]
    (tmp_path / "class" / "red.png").rename(tmp_path / "class" / "drawn-00001.png")
    assert missing_class_images(prior) == [0, 2, 3, 4]


def drawn(folder) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted((folder / "class").glob("drawn-*.png"))}


def drawing_recipe(folder, pipeline_dir) -> Recipe:
    recipe = subject_recipe(folder, pipeline_dir, num_class_images=5, sample_batch_size=2)
    return dataclasses.replace(recipe, validation=dataclasses.replace(recipe.validation, num_inference_steps=1))


def test_missing_images_are_drawn_and_an_interrupted_call_is_continued(pipeline_dir, tmp_path, monkeypatch):
    one, other = tmp_path / "one", tmp_path / "other"
    prepare_class_images(drawing_recipe(one, pipeline_dir), Accelerator())
    images = drawn(one)
    assert list(images) == [f"drawn-{number:05d}.png" for number in range(5)]
    assert len(set(images.values())) == 5
    assert Image.open(one / "class" / "drawn-00000.png").size == (16, 16)

    replace, left = prior_preservation.os.replace, iter([True, True, True])

    def replace_three_times(source, target):
        if next(left, None) is None:
            raise KeyboardInterrupt
        replace(source, target)

    monkeypatch.setattr(prior_preservation.os, "replace", replace_three_times)
    with pytest.raises(KeyboardInterrupt):
        prepare_class_images(drawing_recipe(other, pipeline_dir), Accelerator())
    assert len(drawn(other)) == 3
    monkeypatch.setattr(prior_preservation.os, "replace", replace)
    prepare_class_images(drawing_recipe(other, pipeline_dir), Accelerator())
    # The rest is drawn in a smaller batch, whose sums may differ in the last digit.
    for name, again in drawn(other).items():
        one_image, other_image = (
            np.asarray(Image.open(io.BytesIO(data)), dtype=np.int16) for data in (images.pop(name), again)
        )
        assert np.abs(one_image - other_image).max() <= 1, name
    assert not images


def test_only_the_trained_levels_are_drawn(pipeline_dir, tmp_path):
    recipe = drawing_recipe(tmp_path, pipeline_dir)
    recipe = dataclasses.replace(recipe, stages=recipe.stages[:1])
    prepare_class_images(recipe, Accelerator())
    assert Image.open(tmp_path / "class" / "drawn-00000.png").size == (8, 8)


def test_a_full_folder_needs_no_pipeline_and_an_empty_one_does(folder, tmp_path):
    recipe = dataclasses.replace(
        tiny_recipe(folder / "subject"), prior_preservation=PriorRecipe(str(folder / "class"), "a square", 5)
    )
    prepare_class_images(recipe, Accelerator())
    assert drawn(folder) == {}
    more = dataclasses.replace(recipe, prior_preservation=PriorRecipe(str(folder / "class"), "a square", 7))
    with pytest.raises(ValueError, match="lacks 2 of 7 class images"):
        prepare_class_images(more, Accelerator())


def test_images_of_the_class_are_read_as_those_of_the_subject(folder):
    """The same resizing, without what belongs to the subject's own data set."""
    recipe = subject_recipe(folder)
    data = dataclasses.replace(recipe.data, image_interpolation_mode="nearest", max_train_samples=2)
    read = prior_preservation.class_data(data, recipe.prior_preservation)
    assert (read.image_interpolation_mode, read.caption, read.max_train_samples) == ("nearest", "a square", 5)
    assert len(open_training_images(read, 8).images) == 5
