# SPDX-License-Identifier: Apache-2.0
"""All levels of a drawing side by side, as HTML that contains the images, so that the server keeps no files."""

from __future__ import annotations

import base64
import html
import io
import re
from collections.abc import Mapping, Sequence

from PIL import Image
from PIL.PngImagePlugin import PngInfo

from .drawings import Frames, Progress

FRAME_MILLISECONDS = 250
PREVIEW_SIDE = 256  # pixels; larger previews are reduced, since a new one is sent at every step
LOSSLESS_SIDE = 64  # pixels up to which previews are lossless: every pixel of a small level can be seen
MAX_NAME = 60  # characters of a prompt in the name of a file
SETTINGS_KEY = "diffusers_mdm settings"  # in the text of PNG files


def levels_html(
    progress: Progress, names: Mapping[int, str], title: str, settings_query: str | None = None, first: int = 0
) -> str:
    """Return all levels side by side, enlarged to the same size.

    Args:
        progress: what is shown; levels that it does not have yet are empty.
        names: of the levels that are drawn, by their number.
        title: what is drawn, for screen readers and names of files.
        settings_query: for results, which get a link to download each image, the settings to write into the files.
        first: number of the first level of `progress`.
    """
    figures = []
    for index, name in names.items():
        at = index - first
        images = progress.levels[at] if 0 <= at < len(progress.levels) else []
        shown = "".join(_image(frames, name, title, number, settings_query) for number, frames in enumerate(images))
        empty = "" if shown else '<div class="mdm-empty"></div>'
        crowd = " mdm-several" if len(images) > 1 else ""
        figures.append(
            f'<figure class="mdm-level" data-level="{index}"><figcaption>{html.escape(name)}</figcaption>'
            f'<div class="mdm-images{crowd}">{shown}{empty}</div></figure>'
        )
    state = "result" if progress.is_finished else "preview"
    return f'<div class="mdm-levels" data-state="{state}" data-step="{progress.step}">{"".join(figures)}</div>'


def _image(frames: Frames, name: str, title: str, number: int, settings_query: str | None) -> str:
    alt = html.escape(f"{title}, {name}", quote=True)
    if settings_query is None:
        return f'<div class="mdm-image"><img alt="{alt}" src="{preview_address(frames)}"></div>'
    address = data_address(encode_png(frames, settings_query), "png")
    file = html.escape(file_name(title, name, number), quote=True)
    return (
        f'<div class="mdm-image"><img alt="{alt}" src="{address}">'
        f'<a class="mdm-download" download="{file}" href="{address}" title="Download {file}">Download</a></div>'
    )


def preview_address(frames: Frames) -> str:
    """Return an address that contains a preview, not larger than `PREVIEW_SIDE`."""
    factor = -(-max(frames[0].size) // PREVIEW_SIDE)
    small = frames if factor == 1 else [frame.reduce(factor) for frame in frames]
    if max(small[0].size) <= LOSSLESS_SIDE:
        return data_address(encode_png(small), "png")
    file = io.BytesIO()
    _save(small, file, "WEBP", quality=85, method=0)
    return data_address(file.getvalue(), "webp")


def encode_png(frames: Frames, settings_query: str | None = None) -> bytes:
    """Return an image as a PNG file, or a clip as an animated one.

    Args:
        frames: of the clip, or the only one.
        settings_query: written into the file, so that it says how it was made.
    """
    texts = PngInfo()
    if settings_query is not None:
        texts.add_text(SETTINGS_KEY, settings_query)
    file = io.BytesIO()
    _save(frames, file, "PNG", pnginfo=texts)
    return file.getvalue()


def _save(frames: Sequence[Image.Image], file: io.BytesIO, kind: str, **options: object) -> None:
    animation = {"save_all": True, "append_images": frames[1:], "duration": FRAME_MILLISECONDS, "loop": 0}
    frames[0].save(file, kind, **options, **(animation if len(frames) > 1 else {}))


def data_address(content: bytes, kind: str) -> str:
    """Return an address that contains an image file, of a kind such as "png"."""
    return f"data:image/{kind};base64,{base64.b64encode(content).decode('ascii')}"


def file_name(title: str, level: str, number: int) -> str:
    """Return a name for the file of an image, from what it shows, its level and its number."""
    words = re.sub(r"[^0-9A-Za-z]+", "-", f"{title[:MAX_NAME]} {level}").strip("-").lower()
    return f"{words}-{number}.png"
