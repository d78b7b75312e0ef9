# SPDX-License-Identifier: Apache-2.0
"""Clips as training data: every source, the order, what is random, and what is refused."""

import contextlib
import itertools
import json

import datasets
import pytest
import torch
from PIL import Image

from diffusers_mdm.training.data import numbered as captioned_images
from diffusers_mdm.training.data.batch import Batch
from diffusers_mdm.training.data.order import BatchOrder
from diffusers_mdm.training.data.sources import open_training_images, open_validation_images, training_captions
from diffusers_mdm.training.recipe.data import DataRecipe
from tests.training.clip_files import animation, grey_frames, is_rising, numbers_of, write_frames, write_video
from tests.training.image_files import png, write_tar

NUM_CLIPS = 6
LENGTH = 8  # frames of each clip


def first(images, number: int, start_step: int = 0, num_workers: int = 0, **order: int) -> list[Batch]:
    order = BatchOrder(**{"batch_size": 4, "seed": 3, **order})
    with contextlib.closing(images.batches(order, start_step, num_workers)) as batches:
        return list(itertools.islice(batches, number))


def assert_same(one: list[Batch], other: list[Batch]) -> None:
    assert len(one) == len(other)
    assert [batch.captions for batch in one] == [batch.captions for batch in other]
    assert all(torch.equal(a.pixels, b.pixels) for a, b in zip(one, other, strict=True))
    assert all(torch.equal(a.positions, b.positions) for a, b in zip(one, other, strict=True))


def start_of(number: int) -> int:
    """Clip `number` begins with this grey frame."""
    return number


def clip(number: int, form: str = "PNG") -> bytes:
    return animation(form, grey_frames(LENGTH, first=start_of(number)))


def check_clips(batches: list[Batch], num_frames: int, stride: int = LENGTH) -> None:
    for batch in batches:
        assert batch.pixels.dtype == torch.uint8
        assert batch.pixels.shape == (len(batch), 3, *([num_frames] if num_frames > 1 else []), 8, 8)
        assert batch.num_frames == num_frames
        for pixels, caption in zip(batch.pixels, batch.captions, strict=True):
            begin = start_of(int(caption.removeprefix("clip ")))
            numbers = numbers_of(pixels)
            assert begin <= numbers[0] <= numbers[-1] < begin + LENGTH
            if stride == LENGTH:
                assert numbers == [begin + number * LENGTH // num_frames for number in range(num_frames)]
            assert num_frames == 1 or stride == LENGTH or is_rising(numbers, by=stride)


def write_rows(folder, cells: list, feature, column: str = "video", split: str = "train"):
    features = datasets.Features({column: feature, "text": datasets.Value("string")})
    rows = {column: cells, "text": [f"clip {number}" for number in range(len(cells))]}
    folder.mkdir(parents=True, exist_ok=True)
    datasets.Dataset.from_dict(rows, features=features).to_parquet(str(folder / f"{split}-00000-of-00001.parquet"))
    return folder


@pytest.fixture(scope="module")
def clips_dir(tmp_path_factory):
    datasets.config.HF_DATASETS_CACHE = tmp_path_factory.mktemp("cache")
    folder = tmp_path_factory.mktemp("clips")
    write_rows(folder, [clip(number) for number in range(NUM_CLIPS)], datasets.Value("binary"))
    return write_rows(folder, [clip(number) for number in range(2)], datasets.Value("binary"), split="validation")


def recipe(folder, **fields) -> DataRecipe:
    return DataRecipe(path=str(folder), **{"video_column": "video", **fields})


# --- sources ---


STRUCT = {"bytes": datasets.Value("binary"), "path": datasets.Value("string")}
COLUMNS = {
    "bytes": (datasets.Value("binary"), lambda content: content),
    "large bytes": (datasets.Value("large_binary"), lambda content: content),
    "struct": (STRUCT, lambda content: {"bytes": content, "path": None}),
    "Video": (datasets.Video(), lambda content: {"bytes": content, "path": None}),
    "undecoded Video": (datasets.Video(decode=False), lambda content: {"bytes": content, "path": None}),
    "Image": (datasets.Image(), lambda content: {"bytes": content, "path": None}),
}


@pytest.mark.parametrize("kind", COLUMNS)
def test_columns_of_clips_are_read(tmp_path, kind):
    feature, cell = COLUMNS[kind]
    folder = write_rows(tmp_path / "rows", [cell(clip(number)) for number in range(NUM_CLIPS)], feature, "animation")
    batches = first(open_training_images(recipe(folder, video_column="animation"), 8, num_frames=4), 3)
    check_clips(batches, 4)
    assert {caption for batch in batches for caption in batch.captions} == {f"clip {n}" for n in range(NUM_CLIPS)}


@pytest.mark.parametrize("metadata", ["metadata.csv", "metadata.jsonl"])
def test_folders_of_clip_files_are_read(tmp_path, metadata):
    names = ["0.gif", "1.webp", "2.avif", "3.apng", "4.mp4", "5.webm", "6.mov", "7.avi", "8"]
    for split, used in (("train", names), ("validation", names[:2])):
        folder = tmp_path / "clips" / split
        folder.mkdir(parents=True)
        for name in used:
            number = int(name[0])
            frames = grey_frames(LENGTH, first=start_of(number))
            form = {"gif": "GIF", "webp": "WEBP", "avif": "AVIF", "apng": "PNG"}.get(name[2:])
            if form:
                (folder / name).write_bytes(animation(form, frames))
            elif name[1:]:
                write_video(folder / name, frames)
            else:
                write_frames(folder / name, frames)
        rows = [{"file_name": name, "text": f"clip {name[0]}"} for name in used]
        lines = [json.dumps(row) for row in rows]
        if metadata.endswith("csv"):
            lines = ["file_name,text", *(f"{row['file_name']},{row['text']}" for row in rows)]
        (folder / metadata).write_text("\n".join(lines) + "\n")
    data = recipe(tmp_path / "clips", validation_split="validation")
    images = open_training_images(data, 8, num_frames=4)
    batches = first(images, 3)
    check_clips(batches, 4)
    assert len(images.skipped) == 0
    assert {caption for batch in batches for caption in batch.captions} == {f"clip {n}" for n in range(9)}
    assert sorted(training_captions(data)) == [f"clip {number}" for number in range(9)]
    assert len(open_validation_images(data, 8, num_frames=4)) == 2


def write_shards(folder, num_shards: int = 2, clips_per_shard: int = 3) -> DataRecipe:
    for shard in range(num_shards):
        samples = []
        for number in range(shard * clips_per_shard, (shard + 1) * clips_per_shard):
            parts = {"jpg": png("red"), "avif": clip(number, "AVIF")}  # a sample may hold a still image, too
            parts |= {"txt": f"clip {number}"} if shard else {"json": {"caption": f"clip {number}"}}
            samples.append((f"{number:05d}", parts))
        write_tar(folder / f"{shard}.tar", samples)
    return DataRecipe(shards=(str(folder / f"{{0..{num_shards - 1}}}.tar"),), shuffle_buffer=4, video_column="any")


def test_shards_of_clips_are_read(tmp_path):
    data = write_shards(tmp_path)
    images = open_training_images(data, 8, num_frames=4)
    batches = first(images, 3, batch_size=2)
    check_clips(batches, 4)
    assert {caption for batch in batches for caption in batch.captions} == {f"clip {n}" for n in range(6)}
    assert sorted(training_captions(data)) == [f"clip {number}" for number in range(6)]


def test_shards_of_video_files_are_read_and_held_out(tmp_path):
    write_video(tmp_path / "clip.mp4", grey_frames(LENGTH, first=start_of(3)))
    write_tar(tmp_path / "0.tar", [("a", {"mp4": (tmp_path / "clip.mp4").read_bytes(), "txt": "clip 3"})])
    shards = (str(tmp_path / "0.tar"),)
    data = DataRecipe(shards=shards, validation_shards=shards, video_column="video")
    batch = open_validation_images(data, 8, num_frames=4).load([0])
    assert batch.captions == ["clip 3"]
    assert numbers_of(batch.pixels[0]) == [3, 5, 7, 9]
    still = open_validation_images(data, 8).load([0])
    assert numbers_of(still.pixels[0]) == [3 + LENGTH // 2]


def test_video_files_are_read_in_workers(tmp_path):
    (tmp_path / "train").mkdir()
    for number in range(3):
        write_video(tmp_path / "train" / f"{number}.webm", grey_frames(LENGTH, first=start_of(number)))
    lines = ["file_name,text", *(f"{number}.webm,clip {number}" for number in range(3))]
    (tmp_path / "train" / "metadata.csv").write_text("\n".join(lines) + "\n")
    images = open_training_images(recipe(tmp_path, frame_stride=2), 8, num_frames=3)
    whole = first(images, 3, batch_size=2)
    check_clips(whole, 3, stride=2)
    assert_same(whole[1:], first(images, 2, start_step=1, num_workers=2, batch_size=2))
    assert len(images.skipped) == 0


# --- order, memory, randomness ---


@pytest.mark.parametrize("num_workers", [0, 2])
def test_clips_depend_on_neither_workers_nor_memory_nor_a_restart(clips_dir, monkeypatch, num_workers):
    kept = open_training_images(recipe(clips_dir), 8, num_frames=4)
    assert kept.images.kept is not None
    whole = first(kept, 5)
    check_clips(whole, 4)
    monkeypatch.setattr(captioned_images, "cache_limit_bytes", lambda: NUM_CLIPS * 3 * 4 * 8 * 8 - 1)
    read = open_training_images(recipe(clips_dir), 8, num_frames=4)
    assert read.images.kept is None
    assert_same(whole, first(read, 5, num_workers=num_workers))
    assert_same(whole[3:], first(read, 2, start_step=3, num_workers=num_workers))


RANDOM = {"windows": (3, {"frame_stride": 2}), "single frames": (1, {}), "crops": (4, {"center_crop": False})}


@pytest.mark.parametrize("case", RANDOM)
def test_what_is_random_depends_on_seed_and_position_alone(clips_dir, case):
    num_frames, fields = RANDOM[case]
    images = open_training_images(recipe(clips_dir, **fields), 8, num_frames=num_frames)
    assert images.images.kept is None
    whole = first(images, 12)
    check_clips(whole, num_frames, fields.get("frame_stride", LENGTH if num_frames > 1 else 1))
    assert_same(whole, first(images, 12, num_workers=1))
    assert_same(whole[7:], first(images, 5, start_step=7))
    rows = {int(p): batch.pixels[row] for batch in whole for row, p in enumerate(batch.positions)}
    dealt = [first(images, 12, batch_size=2, rank=rank, world=2) for rank in (0, 1)]
    for batch in itertools.chain(*dealt):
        assert all(torch.equal(rows[int(p)], batch.pixels[row]) for row, p in enumerate(batch.positions))
    if case != "crops":
        begins = {numbers_of(pixels)[0] - start_of(int(caption[5:])) for batch in whole
                  for pixels, caption in zip(batch.pixels, batch.captions, strict=True)}  # fmt: skip
        assert begins == set(range(LENGTH if num_frames == 1 else LENGTH - 4))


@pytest.mark.parametrize("num_workers", [0, 2])
def test_streams_go_on_in_the_middle_whatever_reads_them(tmp_path, num_workers):
    data = write_shards(tmp_path)
    for num_frames in (1, 4):
        whole = first(open_training_images(data, 8, num_frames=num_frames), 8, batch_size=2)
        again = open_training_images(data, 8, num_frames=num_frames)
        assert_same(whole, first(again, 8, num_workers=num_workers, batch_size=2))
        again = open_training_images(data, 8, num_frames=num_frames)
        assert_same(whole[5:], first(again, 3, start_step=5, num_workers=num_workers, batch_size=2))


def test_held_out_clips_are_the_same_wherever_they_stand(clips_dir):
    for fields, num_frames, expected in (
        ({}, 4, [0, 2, 4, 6]),
        ({}, 1, [4]),
        ({"frame_stride": 2, "center_crop": False}, 2, [3, 5]),
    ):
        images = open_validation_images(
            recipe(clips_dir, validation_split="validation", **fields), 8, None, None, num_frames
        )
        batch = images.load([1, 0], positions=[70, 80])
        assert [numbers_of(pixels) for pixels in batch.pixels] == [[1 + n for n in expected], expected]
        assert torch.equal(batch.pixels[1], images.load([0]).pixels[0])


def test_one_crop_serves_all_frames_of_a_clip(tmp_path):
    ramp = Image.linear_gradient("L").rotate(90).resize((64, 8)).convert("RGB")
    moving = animation("PNG", [ramp, *grey_frames(1, (64, 8)), ramp])
    folder = write_rows(tmp_path / "rows", [moving] * 3, datasets.Value("binary"))
    (batch,) = first(open_training_images(recipe(folder, center_crop=False), 8, num_frames=3), 1)
    assert torch.equal(batch.pixels[:, :, 0], batch.pixels[:, :, 2])
    assert len({pixels[0, 0].float().mean().item() for pixels in batch.pixels}) > 1


def test_the_size_of_clips_is_a_micro_condition(tmp_path):
    folder = write_rows(tmp_path / "rows", [animation("PNG", grey_frames(3, (20, 12)))], datasets.Value("binary"))
    (batch,) = first(open_training_images(recipe(folder), 8, {"scale": 64.0}, num_frames=3), 1, batch_size=1)
    assert batch.micro_conditioning["scale"].tolist() == [12.0]


# --- what is refused ---


BROKEN = {
    "3 frames, expected at least 4": animation("PNG", grey_frames(3)),
    "1 frame, expected": png(),
    "it is not a clip": b"this is text",
    "has no clip": None,
    "truncated": clip(0, "GIF")[:-20],
    "4 x 4 pixels, but `min_image_side` is 5": animation("PNG", grey_frames(5, (4, 4))),
}


def test_broken_clips_are_counted_once_and_replaced(tmp_path):
    cells = [clip(number) for number in range(3)] + list(BROKEN.values())
    folder = write_rows(tmp_path / "rows", cells, datasets.Value("binary"))
    images = open_training_images(recipe(folder, min_image_side=5), 8, num_frames=4)
    batches = first(images, 6)
    check_clips(batches, 4)
    assert {caption for batch in batches for caption in batch.captions} == {"clip 0", "clip 1", "clip 2"}
    for reason, name in zip(BROKEN, itertools.count(3), strict=False):
        assert reason in images.skipped.reasons[f"record {name} of {folder} (train)"]
    with pytest.raises(ValueError, match=r"`max_skipped_images` allows 2.*record 3 of .*expected at least 4"):
        open_training_images(recipe(folder, min_image_side=5, max_skipped_images=2), 8, num_frames=4)


def test_broken_clips_of_shards_are_replaced(tmp_path):
    samples = [(f"good{n}", {"png": png(), "gif": clip(n, "GIF"), "txt": f"clip {n}"}) for n in range(2)]
    samples += [(f"bad{n}", {"gif": cell, "txt": "bad"}) for n, cell in enumerate(BROKEN.values()) if cell]
    samples += [("still", {"png": clip(0), "txt": "no clip"})]
    write_tar(tmp_path / "0.tar", samples)
    data = DataRecipe(shards=(str(tmp_path / "0.tar"),), video_column="video", min_image_side=5)
    images = open_training_images(data, 8, num_frames=4)
    batches = first(images, 6)
    check_clips(batches, 4)
    reasons = " ".join(images.skipped.reasons.values())
    assert all(reason in reasons for reason, cell in BROKEN.items() if cell)
    assert "it has no clip, such as .mp4, .webm or .gif (it has .png, .txt)" in reasons


@pytest.mark.parametrize(
    ("fields", "num_frames", "message"),
    [
        ({"train_split": "test"}, 4, "no split 'test'; it has train"),
        ({"video_column": "clip"}, 4, "no column 'clip'; it has video, text"),
        ({"video_column": "text"}, 4, r"'text' .* must contain clips, as the bytes of files"),
        ({"caption_column": "video"}, 4, "'video' .* must contain texts"),
        ({"video_column": None}, 4, r"`num_frames` is 4; .* `data\.video_column`"),
        ({}, 0, "`num_frames` is 0; expected at least 1"),
    ],
)
def test_what_does_not_fit_is_refused(clips_dir, fields, num_frames, message):
    for opened in (open_training_images, open_validation_images):
        data = recipe(clips_dir, **{"validation_split": fields.get("train_split", "validation"), **fields})
        with pytest.raises(ValueError, match=message):
            opened(data, 8, num_frames=num_frames)


def test_folders_without_clips_are_refused(tmp_path):
    with pytest.raises(ValueError, match=r"neither a folder with parquet files or clips, with their captions beside"):
        open_training_images(recipe(tmp_path / "nothing"), 8)


@pytest.mark.parametrize("fields", [{"frame_stride": 2, "video_column": None}, {"frame_stride": 0}])
def test_strides_are_those_of_clips(fields):
    with pytest.raises(ValueError, match="`frame_stride`"):
        recipe("clips", **fields)
