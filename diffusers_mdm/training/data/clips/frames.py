# SPDX-License-Identifier: Apache-2.0
"""Decoding frames of untrusted clips: animated images, video files, folders of images."""

import io
import re
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import torch
from PIL import Image, features

from ..file_kinds import IMAGE_SUFFIXES, suffix_of
from ..images import (
    CENTER,
    MAX_FILE_BYTES,
    Crop,
    Interpolation,
    as_rgb,
    known_formats,
    open_image,
    reasons_of_decoders,
    square_pixels,
)
from ..local_files import check_file, read_file
from ..skip_budget import UnusableSampleError
from .videos import MAX_CLIP_FRAMES, is_video, video_frames

# Formats of Pillow whose frames form an animation, unlike the pages of a TIFF file, for example.
ANIMATED_FORMATS = ("GIF", "WEBP", "AVIF", "PNG")
_HEAD_BYTES = 256
_EXPECTED = "an animated image (GIF, WebP, AVIF, APNG) or a video file (MP4, MOV, WebM, MKV, AVI, MPEG …)"

FrameChooser = Callable[[int], Sequence[int]]
"""Maps the number of frames of a clip to the numbers of the frames to decode, in ascending order."""


def clip_pixels(
    frames: Iterator[Image.Image], side: int, interpolation: Interpolation = "area", crop: Crop = CENTER
) -> torch.Tensor:
    """Crop the largest square from all frames, at the same place, and resize it: uint8 (3, F, side, side).

    Args:
        frames: images of the same size.
        side: S, in pixels.
        interpolation: see `square_pixels`.
        crop: position of the square.
    """
    return torch.stack([square_pixels(frame, side, interpolation, crop) for frame in frames], dim=1)


def clip_frames(source: bytes | str | Path, choose: FrameChooser) -> Iterator[Image.Image]:
    """Decode frames of a clip one at a time, in order; all have the same size.

    Args:
        source: the content of a file, or the path of a file or of a folder with the frames as images, which are sorted
            by the numbers in their names.
        choose: chooses the frames; it refuses a clip that is too short.

    Raises:
        UnusableSampleError: if it is not a clip, is damaged or truncated, changes its size, or has more pixels than
            Pillow's own limit.
        ValueError: if a library is missing.
    """
    if isinstance(source, bytes):
        frames = _file_frames(source, source[:_HEAD_BYTES], choose)
    elif Path(source).is_dir():
        frames = _folder_frames(Path(source), choose)
    else:
        frames = _file_frames(Path(source), _head_of(Path(source)), choose)
    size = None
    for frame in frames:
        if size is not None and frame.size != size:
            raise UnusableSampleError(
                f"its frames change in size, from {size[0]} x {size[1]} to {frame.width} x {frame.height} pixels; "
                "expected one size for all"
            )
        size = frame.size
        yield frame


def _head_of(path: Path) -> bytes:
    check_file(path, MAX_FILE_BYTES)
    try:
        with path.open("rb") as file:
            return file.read(_HEAD_BYTES)
    except OSError as error:
        raise UnusableSampleError(f"it cannot be read ({type(error).__name__}: {error})") from error


def _file_frames(source: bytes | Path, head: bytes, choose: FrameChooser) -> Iterator[Image.Image]:
    if _is_avif(head):
        if not features.check("avif"):
            raise ValueError(
                "This Pillow cannot read AVIF clips: pip install 'diffusers-mdm[video]', which asks for 11.3."
            )
    elif is_video(head):
        yield from video_frames(source, choose)
        return
    elif not head.startswith((b"GIF8", b"RIFF", b"\x89PNG")):
        raise UnusableSampleError(f"it is not a clip; expected {_EXPECTED}")
    yield from _animated_frames(source if isinstance(source, bytes) else read_file(source, MAX_FILE_BYTES), choose)


def _is_avif(head: bytes) -> bool:
    brands = head[8 : int.from_bytes(head[:4], "big")]
    return head[4:8] == b"ftyp" and (b"avif" in brands or b"avis" in brands)


def _animated_frames(content: bytes, choose: FrameChooser) -> Iterator[Image.Image]:
    with reasons_of_decoders():
        image = Image.open(io.BytesIO(content), formats=known_formats(ANIMATED_FORMATS))
        # The image shown by programs without APNG support need not be a frame.
        before = int(getattr(image, "default_image", False))
        count = getattr(image, "n_frames", 1) - before
    if image.format == "GIF" and not content.rstrip(b"\0\r\n ").endswith(b";"):
        raise UnusableSampleError("it is truncated: its last byte is not that of a GIF file")
    if count > MAX_CLIP_FRAMES:
        raise UnusableSampleError(f"it has more than {MAX_CLIP_FRAMES} frames; cut it into clips")
    for number in choose(count):
        with reasons_of_decoders():
            image.seek(before + number)
            # Without a copy, the next frame would overwrite this one.
            frame = as_rgb(image).copy()
        yield frame


def _folder_frames(folder: Path, choose: FrameChooser) -> Iterator[Image.Image]:
    names = [path.name for path in folder.iterdir() if suffix_of(path.name) in IMAGE_SUFFIXES]
    names = sorted((name for name in names if not name.startswith(".")), key=_by_number)
    if not names:
        raise UnusableSampleError("its folder has no images; expected frames such as 0001.png")
    if len(names) > MAX_CLIP_FRAMES:
        raise UnusableSampleError(f"its folder has more than {MAX_CLIP_FRAMES} frames; cut it into clips")
    for number in choose(len(names)):
        try:
            yield open_image(folder / names[number])
        except UnusableSampleError as error:
            raise UnusableSampleError(f"frame {names[number]}: {error}") from error


def _by_number(name: str) -> list[tuple[int, str]]:
    """Return a sort key that puts 2.png before 10.png."""
    parts = re.split(r"(\d+)", name)
    return [(int(part), "") if part.isdigit() else (-1, part) for part in parts]
