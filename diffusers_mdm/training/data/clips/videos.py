# SPDX-License-Identifier: Apache-2.0
"""Frames of video files, through the ffmpeg program that comes with imageio-ffmpeg.

A file is decoded once to count its frames, which no container tells reliably, and to see whether it is whole; what
that found is remembered, so that later epochs do without. Then it is decoded up to the last frame that is wanted. Only
the wanted frames leave ffmpeg, one at a time.

A program of its own, rather than a library such as PyAV, because clips come from strangers: a file that crashes or
hangs a decoder costs a process that can be ended, not a worker of the run. Of what ffmpeg says two phrases are looked
for, since its exit code tells neither: that a frame is too large, and that a Matroska file ended early, which it does
not take for an error.

A video file may name other files and addresses. ffmpeg may open nothing but this one file, and only as one of the
formats that hold their own pictures.
"""

import contextlib
import hashlib
import re
import subprocess
import tempfile
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import IO, NamedTuple, cast

from PIL import Image

from ..skip_budget import UnusableSampleError

MAX_REMEMBERED = 100_000  # numbers of frames of files, in each process
MAX_CLIP_FRAMES = 20_000  # over ten minutes; a longer one is no clip to train on
# ffmpeg's names of the formats that `is_video` knows.
_DEMUXERS = "mov,mp4,m4a,3gp,3g2,mj2,matroska,webm,avi,mpeg,mpegts,mpegvideo,m4v,ogg,flv,asf"
_MAGIC = re.compile(
    rb"....(ftyp|moov|mdat|wide|free|skip)"  # MP4, MOV
    rb"|\x1a\x45\xdf\xa3"  # MKV, WebM
    rb"|RIFF....AVI "
    rb"|\x00\x00\x01[\xb3\xba]"  # MPEG
    rb"|\x47.{187}\x47"  # MPEG-TS
    rb"|OggS|FLV\x01|\x30\x26\xb2\x75\x8e\x66\xcf\x11",  # the last one is ASF, WMV
    re.DOTALL,
)
_DIMENSIONS = re.compile(r"^#dimensions 0: (\d+)x(\d+)$", re.MULTILINE)
_NAMED_IN_ERROR = 200  # characters of what ffmpeg says


class VideoSize(NamedTuple):
    """Frames of a video, and their sides in pixels."""

    num_frames: int
    width: int
    height: int


def is_video(head: bytes) -> bool:
    """Whether a file that begins like this (256 bytes are enough) is of a known video format."""
    return _MAGIC.match(head) is not None


def video_frames(source: bytes | Path, choose: Callable[[int], Sequence[int]]) -> Iterator[Image.Image]:
    """Decode some frames of a video file, as RGB pictures of equal size in their order.

    Args:
        source: content or path of the file.
        choose: gets the number of frames and gives the rising numbers of those wanted.

    Raises:
        UnusableSampleError: if the file is damaged or cut short, changes its size, or is far too large.
        ValueError: if imageio-ffmpeg is not installed.
    """
    with _as_file(source) as path:
        size = _remembered_size(source, path)
        yield from _decoded(path, size, choose(size.num_frames))


_sizes: OrderedDict[object, VideoSize] = OrderedDict()


def _remembered_size(source: bytes | Path, path: Path) -> VideoSize:
    """What `measure_video` found, now or for the same content before."""
    key: object
    if isinstance(source, bytes):
        key = hashlib.sha256(source).digest()
    else:
        status = source.stat()
        key = (str(source), status.st_size, status.st_mtime_ns)
    size = _sizes.get(key) or measure_video(path)
    _sizes[key] = size
    _sizes.move_to_end(key)
    while len(_sizes) > MAX_REMEMBERED:
        _sizes.popitem(last=False)
    return size


def measure_video(path: Path) -> VideoSize:
    """Count the frames of a video file by decoding it; errors as `video_frames`."""
    # One line a frame, which holds its number of bytes, and no pixels.
    output = ["-frames:v", str(MAX_CLIP_FRAMES + 1), "-noautoscale", "-c:v", "rawvideo", "-f", "framecrc", "-"]
    with _running(path, output) as ffmpeg:
        text = ffmpeg.read().decode("ascii", "replace")
        ffmpeg.check()
    frames = [line.split(",") for line in text.splitlines() if line and not line.startswith("#")]
    dimensions = _DIMENSIONS.search(text)
    if dimensions is None or not frames:
        raise UnusableSampleError("it has no frames")
    if len(frames) > MAX_CLIP_FRAMES:
        raise UnusableSampleError(f"it has more than {MAX_CLIP_FRAMES} frames; cut it into clips")
    if len({frame[4].strip() for frame in frames}) > 1:
        raise UnusableSampleError("its frames change in size, expected one size for all")
    return VideoSize(len(frames), int(dimensions[1]), int(dimensions[2]))


def _decoded(path: Path, size: VideoSize, wanted: Sequence[int]) -> Iterator[Image.Image]:
    chosen = "+".join(f"eq(n,{number})" for number in wanted)
    output = [
        "-vf",
        f"select='{chosen}'",
        "-frames:v",
        str(len(wanted)),
        "-c:v",
        "rawvideo",
        "-pix_fmt",
        "rgb24",
        "-f",
        "rawvideo",
        "-",
    ]
    num_bytes = size.width * size.height * 3
    with _running(path, output) as ffmpeg:
        for _ in wanted:
            pixels = ffmpeg.read(num_bytes)
            if len(pixels) < num_bytes:
                ffmpeg.check()
                raise UnusableSampleError(f"it is damaged: one of the frames {list(wanted)} is missing")
            yield Image.frombytes("RGB", (size.width, size.height), pixels)


class _Ffmpeg(NamedTuple):
    """A running ffmpeg: what it writes, and a check, at its end, whether it could read the file."""

    read: Callable[..., bytes]
    check: Callable[[], None]


@contextlib.contextmanager
def _running(path: Path, output: Sequence[str]) -> Iterator[_Ffmpeg]:
    with tempfile.TemporaryFile() as errors:
        process = subprocess.Popen(
            _command(path, output),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=errors,
            start_new_session=True,
        )
        with process:  # closes the pipe and waits
            try:
                yield _Ffmpeg(cast(IO[bytes], process.stdout).read, lambda: _check(process.wait(), errors, path))
            finally:
                process.kill()  # the reader may have stopped early


def _command(path: Path, output: Sequence[str]) -> list[str]:
    # One thread: the workers that read run at the same time anyway. No attached covers ("V").
    given = ["-protocol_whitelist", "file", "-format_whitelist", _DEMUXERS, "-threads", "1"]
    if Image.MAX_IMAGE_PIXELS is not None:
        given += ["-max_pixels", str(Image.MAX_IMAGE_PIXELS)]
    every_frame_once = ["-map", "0:V:0", "-fps_mode", "passthrough"]
    quiet = ["-nostdin", "-hide_banner", "-loglevel", "error", "-xerror"]
    return [_ffmpeg(), *quiet, *given, "-i", f"file:{path}", *every_frame_once, *output]


def _ffmpeg() -> str:
    try:
        import imageio_ffmpeg
    except ImportError as error:
        raise ValueError(
            "Video files need imageio-ffmpeg, which is not installed: pip install 'diffusers-mdm[video]'. Animated "
            "pictures (GIF, WebP, AVIF, APNG) do without it."
        ) from error
    try:
        return str(imageio_ffmpeg.get_ffmpeg_exe())
    except RuntimeError as error:
        raise ValueError(f"imageio-ffmpeg has no ffmpeg for this machine: {error}") from error


def _check(return_code: int, errors: IO[bytes], path: Path) -> None:
    errors.seek(0)
    message = " ".join(errors.read(64 * 1024).decode("utf-8", "replace").split())
    if "max pixel count" in message:
        raise UnusableSampleError(f"it is a decompression bomb: a frame has more than {Image.MAX_IMAGE_PIXELS} pixels")
    if return_code or "prematurely" in message:  # a Matroska file that was cut short is no error to ffmpeg
        # Without what differs from run to run: addresses in memory, and the names of temporary files.
        message = re.sub(r"\[(\S+) @ 0x[0-9a-f]+\]", r"\1:", message.replace(str(path), path.name))
        message = message or f"ended with code {return_code}"
        raise UnusableSampleError(f"it is damaged or cut short (ffmpeg: {message[:_NAMED_IN_ERROR]})")


@contextlib.contextmanager
def _as_file(source: bytes | Path) -> Iterator[Path]:
    """A file with this content; ffmpeg has to go back and forth in it."""
    if isinstance(source, Path):
        yield source
        return
    with tempfile.TemporaryDirectory(prefix="clip-") as folder:
        path = Path(folder) / "clip"
        path.write_bytes(source)
        yield path
