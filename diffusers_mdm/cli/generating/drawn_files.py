# SPDX-License-Identifier: Apache-2.0
"""Names of generated files, and writing them: a file with its final name is complete."""

from __future__ import annotations

import json
import os
import re
import string
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image, PngImagePlugin

FIELDS = ("index", "prompt", "seed", "level")
MAX_PROMPT_LENGTH = 60  # characters of a prompt in the name of a file


@dataclass(frozen=True)
class FileNames:
    """How files are named.

    Attributes:
        folder: where they are.
        pattern: a format string of `FIELDS`, without a suffix.
        suffix: such as "png".
        has_levels: whether every level is a file, so that names must contain the level.

    Raises:
        ValueError: the pattern has other fields, or names a folder.
    """

    folder: Path
    pattern: str
    suffix: str
    has_levels: bool = False

    def __post_init__(self) -> None:
        try:
            parts = list(string.Formatter().parse(self.pattern))
            wrong = [field for _, field, _, _ in parts if field is not None and field not in FIELDS]
            if not wrong:
                self.path(0, "prompt", 0, "16")
        except (ValueError, KeyError, IndexError) as error:
            raise ValueError(f"--name {self.pattern!r} is not a pattern: {error}.") from error
        if wrong:
            known = ", ".join(f"{{{field}}}" for field in FIELDS)
            raise ValueError(f"--name {self.pattern!r} has {{{wrong[0]}}}; expected fields out of {known}.")
        if not self.pattern or {*"".join(text for text, *_ in parts)} & {*'/\\:*?"<>|'}:
            raise ValueError(f"--name {self.pattern!r} is not a file name; set the folder by --output_dir.")

    def path(self, index: int, title: str, seed: int, level: str) -> Path:
        """Return the path of a file.

        Args:
            index: number of the subject.
            title: its prompt or class.
            seed: its seed.
            level: name of the level: its side in pixels, and if that is not enough, the number of frames.
        """
        name = self.pattern.format(index=index, prompt=slug(title), seed=seed, level=level)
        if self.has_levels and "{level" not in self.pattern:
            name += f"-{level}"
        return self.folder / f"{name}.{self.suffix}"

    def check(self, paths: Sequence[Path], overwrite: bool) -> None:
        """Check the paths of all files before the first is generated.

        Raises:
            ValueError: two are equal, or one exists already and `overwrite` is false.
        """
        if len(set(paths)) < len(paths):
            raise ValueError(f"--name {self.pattern!r} gives several files the same name; add {{index}} to it.")
        existing = [path for path in paths if path.exists()]
        if existing and not overwrite:
            raise ValueError(
                f"{existing[0]} exists already; choose another --output_dir or --name, or pass --overwrite."
            )


def slug(text: str) -> str:
    """Return a text as a part of a file name on any system: words of letters and digits, joined by "_"."""
    return "_".join(re.findall(r"\w+", text.lower()))[:MAX_PROMPT_LENGTH].strip("_") or "image"


def write_image(image: Image.Image, path: Path, about: Mapping[str, Any]) -> None:
    """Write an image.

    Args:
        image: the image.
        path: its suffix decides the format.
        about: settings, which PNG files contain as JSON under the key "parameters".

    Raises:
        ValueError: Pillow does not know the suffix.
    """
    more: dict[str, Any] = {}
    if path.suffix.lower() == ".png" and about:
        more["pnginfo"] = PngImagePlugin.PngInfo()
        more["pnginfo"].add_itxt("parameters", json.dumps(about, ensure_ascii=False))
    elif path.suffix.lower() in (".jpg", ".jpeg"):
        more["quality"] = 95
    _replace(path, lambda beside: image.save(beside, **more))


def write_clip(frames: Sequence[Image.Image], path: Path, fps: float) -> None:
    """Write a clip as an animated image (webp, gif) or a video file (mp4, with the extra "video").

    Args:
        frames: its frames.
        path: its suffix decides the format.
        fps: frames per second.

    Raises:
        ValueError: `fps` is not positive.
        ModuleNotFoundError: a video file needs a package that is not installed.
    """
    if fps <= 0:
        raise ValueError(f"--fps is {fps:g}; expected a number above 0.")
    if path.suffix == ".mp4":
        import imageio  # noqa: F401  the error names it; diffusers' own error names other packages, too
        from diffusers.utils import export_to_video

        _replace(path, lambda beside: export_to_video(list(frames), str(beside), fps=max(1, round(fps))))
        return
    settings: dict[str, Any] = {"save_all": True, "append_images": frames[1:], "loop": 0}
    settings["duration"] = round(1000 / fps)  # milliseconds
    if path.suffix == ".webp":
        settings["lossless"] = True
    _replace(path, lambda beside: frames[0].save(beside, **settings))


def _replace(path: Path, write: Any) -> None:
    """Write a file under a temporary name and rename it; nothing is left of a file that could not be written."""
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_name(f".{path.name}.part{path.suffix}")
    try:
        write(beside)
        os.replace(beside, path)
    finally:
        with suppress(FileNotFoundError):
            beside.unlink()
