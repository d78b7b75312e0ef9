# SPDX-License-Identifier: Apache-2.0
"""Training data as the engine opens it: from data sets and from shards, whole and broken."""

import collections
import contextlib
import io
import itertools

import datasets
import pytest
import torch
from PIL import Image

from diffusers_mdm.training.data import numbered as captioned_images
from diffusers_mdm.training.data.batch import Batch
from diffusers_mdm.training.data.order import BatchOrder
from diffusers_mdm.training.data.sources import (
    open_training_images,
    open_validation_images,
    training_captions,
    validation_captions,
)
from diffusers_mdm.training.recipe.data import DataRecipe
from tests.training.image_files import encoded, png, png_bomb, write_shards, write_tar
from tests.training.tiny_run import COLORS, SHAPES

CAPTIONS = {f"{color} {shape}" for color in COLORS for shape in SHAPES}


def order(batch_size: int = 4, accumulation: int = 1, rank: int = 0, world: int = 1, seed: int = 3) -> BatchOrder:
    return BatchOrder(batch_size, accumulation, rank, world, seed)


def first(images, number: int, of: BatchOrder | None = None, start_step: int = 0, num_workers: int = 0) -> list[Batch]:
    with contextlib.closing(images.batches(of or order(), start_step, num_workers)) as batches:
        return list(itertools.islice(batches, number))


def assert_same(one: list[Batch], other: list[Batch]) -> None:
    assert [batch.captions for batch in one] == [batch.captions for batch in other]
    assert all(torch.equal(a.pixels, b.pixels) for a, b in zip(one, other, strict=True))
    assert all(torch.equal(a.positions, b.positions) for a, b in zip(one, other, strict=True))


# --- data sets with numbered rows ---


def test_every_epoch_sees_every_image_once_in_another_order(images_dir):
    images = open_training_images(DataRecipe(path=str(images_dir)), 8)
    captions = [caption for batch in first(images, 6) for caption in batch.captions]
    assert set(captions[:12]) == set(captions[12:]) == CAPTIONS
    assert captions[:12] != captions[12:]


@pytest.mark.parametrize("num_workers", [0, 2])
def test_the_order_depends_on_neither_workers_nor_memory_nor_a_restart(images_dir, monkeypatch, num_workers):
    recipe = DataRecipe(path=str(images_dir))
    kept = first(open_training_images(recipe, 8), 5)
    monkeypatch.setattr(captioned_images, "cache_limit_bytes", lambda: 0)
    read = open_training_images(recipe, 8)
    assert read.images.kept is None
    assert_same(kept, first(read, 5, num_workers=num_workers))
    assert_same(kept[3:], first(read, 2, start_step=3, num_workers=num_workers))


@pytest.fixture
def captioned_dir(tmp_path):
    """12 images with a caption, a shorter one, and a list of words, in two splits."""
    for split in ("train", "validation"):
        columns = {
            "image": datasets.Image(),
            "text": datasets.Sequence(datasets.Value("string")),
            "label": datasets.Value("string"),
        }
        rows = {
            "image": [{"bytes": png((20 * number, 0, 0)), "path": None} for number in range(12)],
            "text": [[f"{number} a", f"{number} b"] for number in range(12)],
            "label": [f"short {number}" for number in range(12)],
        }
        table = datasets.Dataset.from_dict(rows, features=datasets.Features(columns))
        if split == "validation":
            table = table.remove_columns("label")
        (tmp_path / split).mkdir()
        table.to_parquet(str(tmp_path / split / "data.parquet"))
    return tmp_path


@pytest.mark.parametrize("num_workers", [0, 2])
def test_the_choice_of_captions_depends_on_neither_workers_nor_memory_nor_a_restart(
    captioned_dir, monkeypatch, num_workers
):
    recipe = DataRecipe(path=str(captioned_dir), other_caption_columns={"label": 0.5})
    kept = first(open_training_images(recipe, 8), 9)
    captions = [caption for batch in kept for caption in batch.captions]
    assert 9 < sum(caption.startswith("short") for caption in captions) < 27
    assert {caption.split()[-1] for caption in captions} >= {"a", "b"}
    monkeypatch.setattr(captioned_images, "cache_limit_bytes", lambda: 0)
    read = open_training_images(recipe, 8)
    assert_same(kept, first(read, 9, num_workers=num_workers))
    assert_same(kept[5:], first(read, 4, start_step=5, num_workers=num_workers))
    main = [batch.captions for batch in first(open_training_images(recipe.with_main_captions(), 8), 9)]
    for batch, captions in zip(kept, main, strict=True):  # the others are as they were without other columns
        assert all(one == other for one, other in zip(batch.captions, captions, strict=True) if "short" not in one)


@pytest.mark.parametrize("is_kept", [True, False])
def test_validation_uses_the_first_of_the_main_captions(captioned_dir, monkeypatch, is_kept):
    if not is_kept:
        monkeypatch.setattr(captioned_images, "cache_limit_bytes", lambda: 0)
    recipe = DataRecipe(path=str(captioned_dir), validation_split="validation", other_caption_columns={"label": 0.5})
    expected = [f"{number} a" for number in range(12)]
    assert open_validation_images(recipe, 8).load(list(range(12))).captions == expected
    assert list(validation_captions(recipe)) == expected
    assert len(list(training_captions(recipe))) == 36


def test_processes_share_the_images_of_one_process(images_dir):
    images = open_training_images(DataRecipe(path=str(images_dir)), 8)
    (whole,) = first(images, 1, order(batch_size=8))
    parts = [first(images, 1, order(batch_size=4, rank=rank, world=2))[0] for rank in (0, 1)]
    accumulated = first(images, 2, order(batch_size=4, accumulation=2))
    for pieces in (parts, accumulated):
        dealt = dict(pair for piece in pieces for pair in zip(piece.positions.tolist(), piece.captions, strict=True))
        assert dealt == dict(zip(whole.positions.tolist(), whole.captions, strict=True))


def test_a_limit_takes_the_first_images(images_dir):
    recipe = DataRecipe(path=str(images_dir), max_train_samples=2)
    captions = {caption for batch in first(open_training_images(recipe, 8), 3) for caption in batch.captions}
    assert captions == set(itertools.islice(training_captions(DataRecipe(path=str(images_dir))), 2))


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"train_split": "test"}, "no split 'test'; it has train"),
        ({"image_column": "picture"}, "no column 'picture'; it has image, text"),
        ({"caption_column": "caption"}, "no column 'caption'; it has image, text"),
        ({"label_column": "class"}, "no column 'class'; it has image, text"),
        ({"caption_column": "image"}, "'image' .* must contain texts"),
    ],
)
def test_missing_splits_and_columns_name_those_there_are(images_dir, fields, message):
    with pytest.raises(ValueError, match=message):
        open_training_images(DataRecipe(path=str(images_dir), **fields), 8)


def test_folders_without_data_are_refused(tmp_path):
    with pytest.raises(ValueError, match="neither a folder with parquet files"):
        open_training_images(DataRecipe(path=str(tmp_path / "nothing")), 8)


def test_image_folders_with_metadata_are_read(tmp_path):
    (tmp_path / "train").mkdir()
    for number, color in enumerate(COLORS):
        Image.new("RGB", (20, 10), color).save(tmp_path / "train" / f"{number}.png")
    lines = [f'{{"file_name": "{number}.png", "text": "{color}"}}' for number, color in enumerate(COLORS)]
    (tmp_path / "train" / "metadata.jsonl").write_text("\n".join(lines))
    (batch,) = first(open_training_images(DataRecipe(path=str(tmp_path)), 8), 1)
    assert set(batch.captions) == set(COLORS)
    red = batch.pixels[batch.captions.index("red")]
    assert red[:, 4, 4].tolist() == [255, 0, 0]


def write_rows(folder, cells: list[bytes | None], captions: list[str | None]):
    features = datasets.Features({"image": datasets.Image(), "text": datasets.Value("string")})
    rows = {"image": [cell and {"bytes": cell, "path": None} for cell in cells], "text": captions}
    folder.mkdir(parents=True)
    datasets.Dataset.from_dict(rows, features=features).to_parquet(str(folder / "train-00000-of-00001.parquet"))
    return folder


BROKEN = {
    "bomb": png_bomb(),
    "cut short": png(size=(64, 64), color="blue")[:60],
    "no picture": b"this is text",
    "missing": None,
    "3 pixels": png(size=(3, 3)),
}


def test_broken_images_are_counted_once_and_replaced(tmp_path):
    good = [png((0, 40 * number, 0)) for number in range(3)]
    folder = write_rows(tmp_path / "rows", [*good, *BROKEN.values()], [f"caption {n}" for n in range(8)])
    images = open_training_images(DataRecipe(path=str(folder), min_image_side=4), 8)
    batches = first(images, 8)
    assert len(images.skipped) == len(BROKEN)
    assert {caption for batch in batches for caption in batch.captions} == {"caption 0", "caption 1", "caption 2"}
    reasons = " ".join(images.skipped.reasons.values())
    assert all(word in reasons for word in ("3", "no image"))


def test_more_broken_images_than_allowed_end_the_run_by_name(tmp_path):
    folder = write_rows(tmp_path / "rows", [png(), *BROKEN.values()], [f"caption {n}" for n in range(6)])
    recipe = DataRecipe(path=str(folder), min_image_side=4, max_skipped_images=2)
    with pytest.raises(ValueError, match=r"`max_skipped_images` allows 2.*record 1 of"):
        open_training_images(recipe, 8)


def test_cmyk_images_and_empty_captions_are_used(tmp_path):
    cmyk = encoded(Image.new("CMYK", (16, 16), (0, 255, 255, 0)), "JPEG")
    folder = write_rows(tmp_path / "rows", [cmyk, png("blue")], [None, ""])
    images = open_training_images(DataRecipe(path=str(folder)), 8)
    (batch,) = first(images, 1)
    assert batch.captions == [""] * 4
    assert len(images.skipped) == 0
    reds = [image[0].float().mean() > 200 for image in batch.pixels]
    assert any(reds)
    assert not all(reds)


def test_held_out_images_are_taken_by_number(images_dir):
    assert open_validation_images(DataRecipe(path=str(images_dir)), 8) is None
    recipe = DataRecipe(path=str(images_dir), validation_split="train", center_crop=False)
    images = open_validation_images(recipe, 8)
    assert len(images) == 12
    assert torch.equal(images.load([3, 5]).pixels[1], images.load([5]).pixels[0])


# --- shards ---


def shards_recipe(folder, num_shards: int = 3, samples: int = 8, **fields) -> DataRecipe:
    write_shards(folder, num_shards, samples)
    pattern = str(folder / f"{{00000..{num_shards - 1:05d}}}.tar")
    return DataRecipe(shards=(pattern,), shuffle_buffer=6, **fields)


def captions_of(batches: list[Batch]) -> list[str]:
    return [caption for batch in batches for caption in batch.captions]


def test_a_stream_sees_every_sample_once_an_epoch_and_shuffles(tmp_path):
    images = open_training_images(shards_recipe(tmp_path), 8)
    captions = captions_of(first(images, 12))
    expected = {f"{shard} {number}" for shard in range(3) for number in range(8)}
    assert set(captions[:24]) == set(captions[24:]) == expected
    assert captions[:24] != captions[24:]
    assert captions[:24] != sorted(captions[:24])


@pytest.mark.parametrize("num_workers", [0, 2])
def test_a_stream_goes_on_in_the_middle_whatever_reads_it(tmp_path, num_workers):
    recipe = shards_recipe(tmp_path)
    whole = first(open_training_images(recipe, 8), 10)
    assert_same(whole, first(open_training_images(recipe, 8), 10, num_workers=num_workers))
    # In the first epoch and, counted from the sizes of the shards alone, in the second one.
    for step in (4, 8):
        assert_same(whole[step:], first(open_training_images(recipe, 8), 10 - step, None, step, num_workers))


@pytest.mark.parametrize("num_shards", [3, 4])
def test_processes_split_a_stream(tmp_path, num_shards):
    recipe = shards_recipe(tmp_path, num_shards)
    seen = collections.Counter(
        caption
        for rank in (0, 1)
        for caption in captions_of(first(open_training_images(recipe, 8), num_shards, order(rank=rank, world=2)))
    )
    assert seen == {f"{shard} {number}": 1 for shard in range(num_shards) for number in range(8)}


def test_a_truncated_tar_is_read_as_far_as_it_goes(tmp_path):
    recipe = shards_recipe(tmp_path)
    file = tmp_path / "00001.tar"
    file.write_bytes(file.read_bytes()[: 5 * 1024 + 700])
    (tmp_path / "00002.tar").write_bytes(b"no tar file at all" * 100)
    images = open_training_images(recipe, 8)
    captions = captions_of(first(images, 10))
    assert {f"0 {number}" for number in range(8)} <= set(captions)
    assert "1 0" in captions
    assert "1 7" not in captions
    assert sum("00001.tar" in name for name in images.skipped.reasons) >= 1
    assert any("not a tar file" in reason for reason in images.skipped.reasons.values())


def test_broken_samples_of_a_shard_are_replaced_by_others(tmp_path):
    cmyk = encoded(Image.new("CMYK", (16, 16), (0, 255, 255, 0)), "JPEG")
    samples = [(f"good{n}", {"png": png((0, 60 * n, 0)), "txt": f"good {n}"}) for n in range(4)]
    samples += [(name.replace(" ", "-"), {"png": cell, "txt": name}) for name, cell in BROKEN.items() if cell]
    samples += [("cmyk", {"jpg": cmyk, "txt": ""}), ("silent", {"png": png()})]
    write_tar(tmp_path / "0.tar", samples)
    recipe = DataRecipe(shards=(str(tmp_path / "0.tar"),), min_image_side=4)
    images = open_training_images(recipe, 8)
    captions = set(captions_of(first(images, 12)))
    assert {"good 0", "good 1", "good 2", "good 3"} <= captions
    assert "" in captions  # of the CMYK image
    assert not captions & set(BROKEN)
    assert {"bomb", "cut-short", "no-picture", "3-pixels"} <= {
        name.rsplit(":", 1)[-1] for name in images.skipped.reasons
    }


def test_missing_shards_and_repeated_ones_are_refused(tmp_path):
    recipe = shards_recipe(tmp_path)
    missing = DataRecipe(shards=(str(tmp_path / "{00000..00004}.tar"),))
    with pytest.raises(ValueError, match=r"2 of 5 shards do not exist or are not regular files, such as .*00003\.tar"):
        open_training_images(missing, 8)
    with pytest.raises(ValueError, match="named twice"):
        open_training_images(DataRecipe(shards=(*recipe.shards, str(tmp_path / "00000.tar"))), 8)


def test_shards_without_images_are_an_error(tmp_path):
    write_tar(tmp_path / "0.tar", [("a", {"md": "nothing to see"})])
    write_tar(tmp_path / "1.tar", [])
    for shard, message in ((0, r"no usable image.*0\.tar:a.*it has \.md"), (1, r"contain no samples.*000001\.jpg")):
        images = open_training_images(DataRecipe(shards=(str(tmp_path / f"{shard}.tar"),)), 8)
        with pytest.raises(ValueError, match=message):
            first(images, 1)


def test_captions_of_shards_are_listed_for_tokenizers(tmp_path):
    recipe = shards_recipe(tmp_path, 2, 3)
    assert sorted(training_captions(recipe)) == [f"{shard} {number}" for shard in range(2) for number in range(3)]


def test_held_out_shards_are_numbered(tmp_path):
    recipe = shards_recipe(tmp_path / "train")
    held_out = write_shards(tmp_path / "held-out", 1, 5)
    recipe = DataRecipe(shards=recipe.shards, validation_shards=tuple(held_out))
    images = open_validation_images(recipe, 8)
    assert len(images) == 5
    assert images.load([4]).captions == ["0 4"]
    file = Image.open(io.BytesIO(png((0, 20, 0))))
    assert images.load([4]).pixels[0, 1, 0, 0] == file.getpixel((0, 0))[1]
