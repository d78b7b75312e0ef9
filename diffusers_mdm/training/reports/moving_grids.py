# SPDX-License-Identifier: Apache-2.0
"""Clips that are drawn during training, to look at: as a still with the frames beside each other, and moving."""

from collections.abc import Sequence
from pathlib import Path

from PIL import Image

from ...pipelines.picture_grid import make_grid

ANIMATION_SUFFIX = ".webp"
FRAMES_PER_SECOND = 8
_QUALITY = 90

Clip = Sequence[Image.Image]
Clips = Sequence[Sequence[Clip]]  # for each level, innermost first, the clip of each prompt


def clip_grid(clips: Clips, prompts: Sequence[str]) -> Image.Image:
    """A block for each prompt, one below the other: a column a frame and a row a level, the smallest on top.

    Levels with fewer frames show each of theirs as it lasts. Single frames are laid out as pictures are.
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
    """What is seen at each moment, one grid a frame: a column a prompt and a row a level, the smallest on top."""
    num_frames = frames_of(clips)
    return [
        make_grid([[frame_at(clip, time, num_frames) for clip in level] for level in clips], prompts)
        for time in range(num_frames)
    ]


def frames_of(clips: Clips) -> int:
    """Frames of the outermost level."""
    return len(clips[-1][0])


def frame_at(clip: Clip, time: int, num_frames: int) -> Image.Image:
    """What a clip of a level shows at frame `time` of the `num_frames` of the outermost level."""
    return clip[time * len(clip) // num_frames]


def save_animation(pictures: Sequence[Image.Image], path: Path) -> None:
    """Write pictures as an animated WebP that repeats without end."""
    pictures[0].save(
        path,
        save_all=True,
        append_images=list(pictures[1:]),
        duration=round(1000 / FRAMES_PER_SECOND),
        loop=0,
        quality=_QUALITY,
    )
