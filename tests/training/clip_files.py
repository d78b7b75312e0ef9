# SPDX-License-Identifier: Apache-2.0
"""Clips of all kinds. Frame i is grey with the value `grey(i)`, so that frames can be told apart after coding."""

import io
import itertools
import subprocess
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image

ANIMATIONS = ("GIF", "WEBP", "AVIF", "PNG")
VIDEOS = {
    "mp4": ["-c:v", "libx264", "-pix_fmt", "yuv420p"],
    "mov": ["-c:v", "libx264", "-pix_fmt", "yuv420p"],
    "webm": ["-c:v", "libvpx-vp9", "-pix_fmt", "yuv420p"],
    "mkv": ["-c:v", "libx264", "-pix_fmt", "yuv420p"],
    "avi": ["-c:v", "mjpeg", "-pix_fmt", "yuvj444p"],
    "mpg": ["-c:v", "mpeg2video"],
    "ts": ["-c:v", "mpeg2video"],
}
MAX_CODING_ERROR = 4


def grey(number: int) -> int:
    return 20 + 10 * number


def grey_frames(count: int, size: tuple[int, int] = (16, 16), first: int = 0) -> list[Image.Image]:
    return [Image.new("RGB", size, (grey(first + number),) * 3) for number in range(count)]


def animation(form: str, frames: Sequence[Image.Image], **options: object) -> bytes:
    """An animated image with these frames."""
    buffer = io.BytesIO()
    if form in ("WEBP", "PNG"):
        options = {"lossless": True, "default_image": False} | options
    if form == "AVIF":
        options = {"quality": 95, "subsampling": "4:4:4"} | options
    frames[0].save(buffer, form, save_all=True, append_images=list(frames[1:]), duration=100, **options)
    return buffer.getvalue()


def ffmpeg(*arguments: str, stdin: bytes = b"") -> None:
    import imageio_ffmpeg

    command = [imageio_ffmpeg.get_ffmpeg_exe(), "-y", "-loglevel", "error", *arguments]
    subprocess.run(command, input=stdin, check=True)


def write_video(path: Path, frames: Sequence[Image.Image], *options: str) -> Path:
    """A video file with these frames, in a codec that fits its suffix."""
    raw = b"".join(frame.tobytes() for frame in frames)
    size = f"{frames[0].width}x{frames[0].height}"
    source = ["-f", "rawvideo", "-pix_fmt", "rgb24", "-s", size, "-r", "25", "-i", "-"]
    ffmpeg(*source, *VIDEOS[path.suffix[1:]], *options, str(path), stdin=raw)
    return path


def write_frames(folder: Path, frames: Sequence[Image.Image]) -> Path:
    """A folder with these frames as 1.png, 2.png …"""
    folder.mkdir(parents=True)
    for number, frame in enumerate(frames):
        frame.save(folder / f"{number + 1}.png")
    return folder


def numbers_of(pixels: torch.Tensor | Sequence[Image.Image]) -> list[int]:
    """Which grey frames these are: pixels `(3, S, S)` or `(3, F, S, S)`, or images."""
    if not isinstance(pixels, torch.Tensor):
        pixels = torch.stack(
            [torch.from_numpy(np.array(frame.convert("RGB"))).permute(2, 0, 1) for frame in pixels], 1
        )
    frames = pixels[:, None] if pixels.ndim == 3 else pixels
    values = frames.float().mean((0, 2, 3))
    numbers = ((values - 20) / 10).round()
    assert (values - (20 + 10 * numbers)).abs().max() <= MAX_CODING_ERROR
    return numbers.int().tolist()


def is_rising(numbers: Sequence[int], by: int) -> bool:
    return all(after - before == by for before, after in itertools.pairwise(numbers))
