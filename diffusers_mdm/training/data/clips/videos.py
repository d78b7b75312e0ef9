# SPDX-License-Identifier: Apache-2.0
"""Decoding frames of video files with the ffmpeg program that comes with imageio-ffmpeg.

A file is decoded once to count its frames, which containers do not state reliably, and to check that it is complete;
the result is remembered for later epochs. Then it is decoded up to the last frame needed. Only the needed frames are
output by ffmpeg, one at a time.

ffmpeg runs as a separate program, instead of a library such as PyAV, because the files are untrusted: a file that
crashes or hangs a decoder then only affects a process that can be killed, not a worker of the run. Two phrases are
searched in ffmpeg's output, since its exit code does not show them: that a frame is too large, and that a Matroska
file ended early, which ffmpeg does not treat as an error.

A video file may refer to other files and to URLs. ffmpeg is restricted to opening only the given file, and only in
formats that contain their own frames.
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

MAX_REMEMBERED = 100_000  # how many files' sizes are remembered in each process
MAX_CLIP_FRAMES = 20_000  # over ten minutes; anything longer is not a clip to train on
# ffmpeg's names of the formats that `is_video` recognises.
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
_NAMED_IN_ERROR = 200  # characters of ffmpeg's messages


class VideoSize(NamedTuple):
    """Number of frames of a video, and their width and height in pixels."""

    num_frames: int
    width: int
    height: int


def is_video(head: bytes) -> bool:
    """Return whether a file that begins with these bytes (256 are enough) is in a known video format."""
    return _MAGIC.match(head) is not None


def video_frames(source: bytes | Path, choose: Callable[[int], Sequence[int]]) -> Iterator[Image.Image]:
    """Decode frames of a video file, in order, as RGB images of the same size.

    Args:
        source: content or path of the file.
        choose: maps the number of frames to the numbers of the frames to decode, in ascending order.

    Raises:
        UnusableSampleError: if the file is damaged or truncated, changes its size, or is far too large.
        ValueError: if imageio-ffmpeg is not installed.
    """
    with _as_file(source) as path:
        size = _remembered_size(source, path)
        yield from _decoded(path, size, choose(size.num_frames))


_sizes: OrderedDict[object, VideoSize] = OrderedDict()


def _remembered_size(source: bytes | Path, path: Path) -> VideoSize:
    """Return the result of `measure_video`, remembered for the same content."""
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
    """Count the frames of a video file by decoding it; raises the errors of `video_frames`."""
    # One line per frame, with its number of bytes and no pixels.
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
        raise UnusableSampleError("its frames change in size; expected one size for all")
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
    """A running ffmpeg process: its output, and a check at its end whether it could read the file."""

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
                process.kill()  # the caller may have stopped early


def _command(path: Path, output: Sequence[str]) -> list[str]:
    # One thread, since the reading workers run in parallel anyway. "V" excludes attached cover images.
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
            "images (GIF, WebP, AVIF, APNG) do not need it."
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
    if return_code or "prematurely" in message:  # a truncated Matroska file is not an error to ffmpeg
        # Remove what differs from run to run: memory addresses and names of temporary files.
        message = re.sub(r"\[(\S+) @ 0x[0-9a-f]+\]", r"\1:", message.replace(str(path), path.name))
        message = message or f"ended with code {return_code}"
        raise UnusableSampleError(f"it is damaged or truncated (ffmpeg: {message[:_NAMED_IN_ERROR]})")


@contextlib.contextmanager
def _as_file(source: bytes | Path) -> Iterator[Path]:
    """Provide the content as a file, since ffmpeg needs to seek in it."""
    if isinstance(source, Path):
        yield source
        return
    with tempfile.TemporaryDirectory(prefix="clip-") as folder:
        path = Path(folder) / "clip"
        path.write_bytes(source)
        yield path
