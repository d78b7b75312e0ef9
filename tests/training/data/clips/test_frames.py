# SPDX-License-Identifier: Apache-2.0
"""Clips as animated images and as folders of images; video files are in test_video_files."""

import numpy as np
import pytest
import torch
from PIL import Image

from diffusers_mdm.training.data.clips import frames as clip_decoding
from diffusers_mdm.training.data.clips.frames import clip_frames, clip_pixels
from diffusers_mdm.training.data.images import Crop, square_pixels
from diffusers_mdm.training.data.skip_budget import UnusableSampleError
from tests.training.clip_files import ANIMATIONS, animation, grey_frames, numbers_of, write_frames
from tests.training.image_files import encoded, png, png_bomb


def every_other(count: int) -> list[int]:
    return list(range(0, count, 2))


def read(source, choose=every_other) -> list[Image.Image]:
    return list(clip_frames(source, choose))


@pytest.mark.parametrize("form", ANIMATIONS)
def test_animated_images_are_clips(form, tmp_path):
    content = animation(form, grey_frames(7))
    assert numbers_of(read(content)) == [0, 2, 4, 6]
    (tmp_path / "clip").write_bytes(content)
    assert numbers_of(read(tmp_path / "clip")) == [0, 2, 4, 6]


@pytest.mark.parametrize("form", ["GIF", "WEBP", "AVIF", "PNG"])
def test_moving_parts_on_clear_ground_are_put_together_on_white(form):
    frames = []
    for place in (0, 4, 8):
        frame = Image.new("RGBA", (16, 16))
        frame.paste("blue", (place, 0, place + 4, 16))
        frames.append(frame)
    # Else GIF frames are drawn over each other, and this encoder of WebP forgets to say that there is transparency.
    options = {"GIF": {"disposal": 2}, "WEBP": {"kmin": 1, "kmax": 1}}
    content = animation(form, frames, **options.get(form, {}))
    pixels = clip_pixels(clip_frames(content, range), 16)
    assert pixels.shape == (3, 3, 16, 16)
    for number, place in enumerate((0, 4, 8)):
        expected = torch.full((3, 16, 16), 255.0)
        expected[:2, :, place : place + 4] = 0
        assert (pixels[:, number].float() - expected).abs().mean() < 4


def test_the_image_in_place_of_an_apng_is_no_frame():
    still, *frames = [Image.new("RGB", (16, 16), "red"), *grey_frames(4)]
    content = animation("PNG", [still, *frames], default_image=True)
    assert numbers_of(read(content, range)) == [0, 1, 2, 3]


def test_folders_of_numbered_images_are_clips(tmp_path):
    folder = write_frames(tmp_path / "clip", grey_frames(12))
    (folder / "notes.txt").write_text("no frame")
    (folder / ".2.png").write_bytes(b"a leftover")
    assert numbers_of(read(folder, range)) == list(range(12))
    (folder / "3.png").write_bytes(png(size=(64, 64))[:60])
    with pytest.raises(UnusableSampleError, match=r"frame 3\.png: it cannot be decoded"):
        read(folder, range)
    (tmp_path / "empty").mkdir()
    with pytest.raises(UnusableSampleError, match="has no images"):
        read(tmp_path / "empty")


def test_frames_of_changing_size_are_refused(tmp_path):
    folder = write_frames(tmp_path / "clip", [*grey_frames(2), *grey_frames(1, (16, 20))])
    with pytest.raises(UnusableSampleError, match="change in size, from 16 x 16 to 16 x 20"):
        read(folder, range)


@pytest.mark.parametrize("content", [b"", b"this is text", b"#EXTM3U\n#EXTINF:3,\nclip.ts\n", b"\x89PNG but no more"])
def test_what_is_no_clip_is_refused(content, tmp_path):
    with pytest.raises(UnusableSampleError, match=r"it is not a clip; expected an animated|cannot be decoded"):
        read(content)
    with pytest.raises(UnusableSampleError, match="cannot be found"):
        read(tmp_path / "missing.gif")


def test_pages_are_no_frames():
    with pytest.raises(UnusableSampleError, match="it is not a clip"):
        read(animation("TIFF", grey_frames(3)))


def test_still_images_have_one_frame():
    counts = []
    for content in (png(), encoded(Image.new("RGB", (16, 16)), "GIF"), encoded(Image.new("RGB", (16, 16)), "AVIF")):
        read(content, lambda count: counts.append(count) or [0])
    assert counts == [1, 1, 1]


@pytest.mark.parametrize("form", ANIMATIONS)
@pytest.mark.parametrize("share", [0.2, 0.5, 0.8, 0.97])
def test_clips_that_were_cut_short_are_refused(form, share):
    random = np.random.default_rng(0)
    noise = [Image.fromarray(random.integers(0, 256, (32, 32, 3), dtype=np.uint8)) for _ in range(6)]
    content = animation(form, noise)
    assert len(read(content, range)) == 6
    with pytest.raises(UnusableSampleError):
        read(content[: int(len(content) * share)], range)


@pytest.mark.parametrize("form", ANIMATIONS)
def test_damage_gives_a_clip_or_a_reason(form):
    whole = animation(form, [Image.effect_noise((32, 32), 90).convert("RGB") for _ in range(3)])
    random = np.random.default_rng(0)
    for _ in range(40):
        damaged = bytearray(whole)
        for place in random.integers(0, len(whole), 4):
            damaged[place] = random.integers(256)
        try:
            pixels = clip_pixels(clip_frames(bytes(damaged), lambda count: [0, count // 2]), 8)
        except UnusableSampleError:
            continue
        assert pixels.shape == (3, 2, 8, 8)


def test_bombs_are_refused(monkeypatch):
    with pytest.raises(UnusableSampleError, match="decompression bomb"):
        read(png_bomb())
    monkeypatch.setattr(clip_decoding, "MAX_CLIP_FRAMES", 4)
    with pytest.raises(UnusableSampleError, match="more than 4 frames; cut it into clips"):
        read(animation("GIF", grey_frames(5)))


def test_too_large_files_are_refused(monkeypatch, tmp_path):
    monkeypatch.setattr(clip_decoding, "MAX_FILE_BYTES", 100)
    (tmp_path / "clip").write_bytes(animation("GIF", grey_frames(5)))
    with pytest.raises(UnusableSampleError, match="larger than"):
        read(tmp_path / "clip")


def test_a_pillow_without_avif_is_told_of(monkeypatch):
    content = animation("AVIF", grey_frames(2))
    monkeypatch.setattr(clip_decoding.features, "check", lambda name: False)
    with pytest.raises(ValueError, match=r"cannot read AVIF clips.*diffusers-mdm\[video\]") as error:
        read(content)
    assert not isinstance(error.value, UnusableSampleError)


def test_all_frames_are_cropped_alike():
    ramp = Image.linear_gradient("L").rotate(90).resize((64, 8)).convert("RGB")
    frames = [ramp, ramp, ramp]
    crop = Crop(0.3, 0.5)
    pixels = clip_pixels(iter(frames), 4, crop=crop)
    assert all(torch.equal(pixels[:, number], square_pixels(ramp, 4, crop=crop)) for number in range(3))
