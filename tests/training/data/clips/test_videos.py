# SPDX-License-Identifier: Apache-2.0
import sys

import pytest
from PIL import Image

from diffusers_mdm.training.data.clips import videos as video_files
from diffusers_mdm.training.data.clips.frames import clip_frames
from diffusers_mdm.training.data.clips.videos import measure_video, video_frames
from diffusers_mdm.training.data.skip_budget import UnusableSampleError
from tests.training.clip_files import VIDEOS, ffmpeg, grey_frames, numbers_of, write_video
from tests.training.image_files import encoded


def read(source, choose=range) -> list[Image.Image]:
    return list(clip_frames(source, choose))


@pytest.mark.parametrize("suffix", VIDEOS)
def test_video_files_are_clips_by_path_and_by_content(suffix, tmp_path):
    path = write_video(tmp_path / f"a clip: 100%.{suffix}", grey_frames(12, (32, 16)))
    assert measure_video(path) == (12, 32, 16)
    wanted = [0, 3, 7, 11]
    for source in (path, str(path), path.read_bytes()):
        frames = read(source, lambda count: wanted)
        assert numbers_of(frames) == wanted
        assert {frame.size for frame in frames} == {(32, 16)}


def test_clips_are_turned_upright(tmp_path):
    path = write_video(tmp_path / "flat.mp4", grey_frames(3, (32, 16)))
    ffmpeg("-display_rotation", "90", "-i", str(path), "-c", "copy", str(tmp_path / "turned.mp4"))
    assert {frame.size for frame in read(tmp_path / "turned.mp4")} == {(16, 32)}


def test_frames_before_the_cut_of_an_edit_list_are_not_counted(tmp_path):
    path = write_video(tmp_path / "whole.mp4", grey_frames(20))
    ffmpeg("-ss", "0.28", "-i", str(path), "-c", "copy", str(tmp_path / "cut.mp4"))
    assert numbers_of(read(tmp_path / "cut.mp4")) == list(range(7, 20))


def test_a_reader_may_stop_early(tmp_path):
    path = write_video(tmp_path / "clip.mp4", grey_frames(12, (256, 256)))
    frames = video_frames(path, range)
    assert numbers_of([next(frames)]) == [0]
    frames.close()


@pytest.mark.parametrize("suffix", ["mp4", "webm", "mkv", "avi", "mpg"])
def test_videos_that_were_cut_short_are_refused(suffix, tmp_path):
    frames = [Image.effect_noise((64, 64), 90).convert("RGB") for _ in range(12)]
    content = write_video(tmp_path / f"clip.{suffix}", frames).read_bytes()
    assert len(read(content)) == 12
    for share in (0.3, 0.66):
        with pytest.raises(UnusableSampleError, match="damaged or truncated"):
            read(content[: int(len(content) * share)])


def test_equal_errors_have_equal_messages(tmp_path):
    content = write_video(tmp_path / "clip.mp4", grey_frames(9)).read_bytes()
    messages = set()
    for _ in range(2):
        with pytest.raises(UnusableSampleError) as error:
            read(content[:700])
        messages.add(str(error.value))
    assert len(messages) == 1


@pytest.mark.parametrize("suffix", ["mkv", "mov"])
def test_frames_of_changing_size_are_refused(suffix, tmp_path):
    images = [*grey_frames(3, (64, 48)), *grey_frames(3, (32, 32))]
    stream = b"".join(encoded(image, "JPEG") for image in images)
    ffmpeg("-f", "image2pipe", "-c:v", "mjpeg", "-i", "-", "-c", "copy", str(tmp_path / f"c.{suffix}"), stdin=stream)
    with pytest.raises(UnusableSampleError, match="frames change in size; expected one size"):
        read(tmp_path / f"c.{suffix}")


def test_sound_alone_is_no_clip(tmp_path):
    ffmpeg("-f", "lavfi", "-i", "sine=duration=1", str(tmp_path / "sound.mp4"))
    with pytest.raises(UnusableSampleError, match=r"damaged or truncated|no frames"):
        read(tmp_path / "sound.mp4")


def test_bombs_and_films_are_refused(tmp_path, monkeypatch):
    path = write_video(tmp_path / "clip.mp4", grey_frames(6, (64, 64)))
    monkeypatch.setattr(video_files, "MAX_CLIP_FRAMES", 5)
    with pytest.raises(UnusableSampleError, match="more than 5 frames; cut it into clips"):
        read(path)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 4000)
    with pytest.raises(UnusableSampleError, match="decompression bomb: a frame has more than 4000 pixels"):
        read(path)


def test_videos_may_open_no_other_file(tmp_path):
    """A playlist is text, and one that hides behind the first bytes of a video is refused by ffmpeg."""
    clip = write_video(tmp_path / "clip.ts", grey_frames(6))
    for name, content in (
        ("list.m3u8", f"#EXTM3U\n#EXT-X-TARGETDURATION:1\n#EXTINF:1,\n{clip}\n#EXT-X-ENDLIST\n"),
        ("list.ffconcat", f"ffconcat version 1.0\nfile '{clip}'\n"),
    ):
        (tmp_path / name).write_text(content)
        with pytest.raises(UnusableSampleError):
            read(tmp_path / name)
        with pytest.raises(UnusableSampleError):
            measure_video(tmp_path / name)


def test_a_missing_library_is_told_of(tmp_path, monkeypatch):
    path = write_video(tmp_path / "clip.mp4", grey_frames(3))
    monkeypatch.setitem(sys.modules, "imageio_ffmpeg", None)
    with pytest.raises(ValueError, match=r"need imageio-ffmpeg.*diffusers-mdm\[video\]") as error:
        read(path)
    assert not isinstance(error.value, UnusableSampleError)


def test_frames_of_a_file_are_counted_once(tmp_path, monkeypatch):
    path = write_video(tmp_path / "clip.mp4", grey_frames(9))
    content = path.read_bytes()
    for source in (path, content):
        assert len(read(source)) == 9
    monkeypatch.setattr(video_files, "measure_video", None)  # not asked again
    for source in (path, content):
        assert numbers_of(read(source, lambda count: [count - 1])) == [8]


def test_a_file_that_has_changed_is_counted_anew(tmp_path):
    path = write_video(tmp_path / "clip.mp4", grey_frames(9))
    assert len(read(path)) == 9
    write_video(path, grey_frames(5))
    assert len(read(path)) == 5
