# SPDX-License-Identifier: Apache-2.0
"""Grids of the clips generated during training: a still image with the frames side by side, and an animation."""

from collections.abc import Sequence
from pathlib import Path

from PIL import Image

from ...pipelines.image_grid import make_grid

ANIMATION_SUFFIX = ".webp"
FRAMES_PER_SECOND = 8
_QUALITY = 90

Clip = Sequence[Image.Image]
Clips = Sequence[Sequence[Clip]]  # for each level, innermost first, one clip per prompt


def clip_grid(clips: Clips, prompts: Sequence[str]) -> Image.Image:
    """Lay out one block per prompt, one below the other: a column per frame and a row per level, the smallest on top.

    Levels with fewer frames repeat each frame for as long as it lasts. Single frames are laid out like images.
    """
    num_frames = frames_of(clips)
    if num_frames == 1:
        return make_grid([[clip[0] for clip in level] for level in clips], prompts)
    blocks = [
        make_grid(
            [[frame_at(level[number], time, num_frames) for time in range(num_frames)] for level in clips],
            [prompt, *[""] * (num_frames - 1)],
        )
        for number, prompt in enumerate(prompts)
    ]
    grid = Image.new("RGB", (max(block.width for block in blocks), sum(block.height for block in blocks)), "white")
    top = 0
    for block in blocks:
        grid.paste(block, (0, top))
        top += block.height
    return grid


def clip_animation(clips: Clips, prompts: Sequence[str]) -> list[Image.Image]:
    """Return one grid per frame: a column per prompt and a row per level, the smallest on top."""
    num_frames = frames_of(clips)
    return [
        make_grid([[frame_at(clip, time, num_frames) for clip in level] for level in clips], prompts)
        for time in range(num_frames)
    ]


def frames_of(clips: Clips) -> int:
    """Return the number of frames of the outermost level."""
    return len(clips[-1][0])


def film_strip(clip: Clip) -> Image.Image:
    """Return the frames of a clip side by side."""
    width, height = clip[0].size
    strip = Image.new("RGB", (width * len(clip), height))
    for number, frame in enumerate(clip):
        strip.paste(frame, (number * width, 0))
    return strip


def frame_at(clip: Clip, time: int, num_frames: int) -> Image.Image:
    """Return the frame of a level's clip at frame `time` of the `num_frames` of the outermost level."""
    return clip[time * len(clip) // num_frames]


def save_animation(images: Sequence[Image.Image], path: Path) -> None:
    """Write images as an animated WebP that loops for ever."""
    images[0].save(
        path,
        save_all=True,
        append_images=list(images[1:]),
        duration=round(1000 / FRAMES_PER_SECOND),
        loop=0,
        quality=_QUALITY,
    )
