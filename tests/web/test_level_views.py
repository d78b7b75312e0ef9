# SPDX-License-Identifier: Apache-2.0
"""Levels are shown side by side as images inside the page, and results can be downloaded with their settings."""

import base64
import io
import re

import pytest
from PIL import Image, ImageSequence

from diffusers_mdm.web.drawings import Progress
from diffusers_mdm.web.level_views import (
    PREVIEW_SIDE,
    SETTINGS_KEY,
    encode_png,
    file_name,
    levels_html,
    preview_address,
)

NAMES = {0: "8 px", 1: "16 px"}
COLOURS = ("red", "green", "blue")


def frames(side, count=1):
    return [Image.new("RGB", (side, side), colour) for colour in COLOURS[:count]]


def opened(address):
    return Image.open(io.BytesIO(base64.b64decode(address.partition("base64,")[2])))


def progress(finished=False, images=1, levels=2):
    return Progress(3, 4, [[frames(8 << level)] * images for level in range(levels)], finished)


def test_every_level_has_its_image_and_name():
    view = levels_html(progress(), NAMES, "cat")
    addresses = re.findall(r'src="([^"]+)"', view)
    assert [opened(address).size for address in addresses] == [(8, 8), (16, 16)]
    assert [name in view for name in NAMES.values()] == [True, True]
    assert 'data-state="preview"' in view
    assert "download" not in view.lower()


def test_levels_that_are_not_open_yet_are_empty():
    view = levels_html(progress(levels=1), NAMES, "cat")
    assert view.count("<img") == 1
    assert view.count("mdm-empty") == 1


def test_results_can_be_downloaded_with_their_settings():
    view = levels_html(progress(finished=True, images=2), NAMES, "cat", "task=text&seed=3")
    links = re.findall(r'download="([^"]+)" href="([^"]+)"', view)
    assert [name for name, _ in links] == ["cat-8-px-0.png", "cat-8-px-1.png", "cat-16-px-0.png", "cat-16-px-1.png"]
    assert opened(links[-1][1]).text[SETTINGS_KEY] == "task=text&seed=3"


def test_no_text_of_a_visitor_becomes_markup():
    title = '"><script>alert(1)</script>'
    view = levels_html(progress(finished=True), {0: "<b>8</b>", 1: "16"}, title, "task=text")
    assert "<script" not in view
    assert "<b>" not in view
    assert 'alt=""' not in view


def test_clips_are_animations():
    image = Image.open(io.BytesIO(encode_png(frames(8, 3))))
    colours = [frame.convert("RGB").getpixel((0, 0)) for frame in ImageSequence.Iterator(image)]
    assert colours == [(255, 0, 0), (0, 128, 0), (0, 0, 255)]


@pytest.mark.parametrize(("side", "kind"), [(16, "PNG"), (64, "PNG"), (128, "WEBP"), (1000, "WEBP")])
def test_previews_are_small(side, kind):
    image = opened(preview_address(frames(side)))
    assert image.format == kind
    assert image.width == min(side, 250 if side == 1000 else side) <= PREVIEW_SIDE


def test_names_of_files_are_plain():
    assert file_name("déjà vu/../x: 1?", "16 px", 2) == "d-j-vu-x-1-16-px-2.png"
    assert len(file_name("a" * 500, "16 px", 0)) < 90
