# SPDX-License-Identifier: Apache-2.0
"""Uploads are read with limits; paint becomes a mask; what is no image is explained."""

import pytest
from PIL import Image

from diffusers_mdm.web.limits import Limits
from diffusers_mdm.web.uploads import read_edit, read_upload

LIMITS = Limits(upload_megabytes=1, upload_megapixels=1)


@pytest.fixture
def photo(tmp_path):
    path = tmp_path / "photo.png"
    Image.new("RGBA", (20, 10), (255, 0, 0, 0)).save(path)
    return path


def layer(path, box=None, size=(20, 10)):
    image = Image.new("RGBA", size)
    if box is not None:
        image.paste((225, 29, 72, 40), box)
    image.save(path)
    return str(path)


def test_transparent_areas_are_white(photo):
    given = read_upload(str(photo), LIMITS)
    assert given.image.mode == "RGB"
    assert given.image.getpixel((0, 0)) == (255, 255, 255)
    assert given.mask is None


@pytest.mark.parametrize("path", [None, ""])
def test_nothing_uploaded(path):
    with pytest.raises(ValueError, match="Upload an image first"):
        read_upload(path, LIMITS)
    with pytest.raises(ValueError, match="Upload an image first"):
        read_edit({"background": path, "layers": [], "composite": None}, LIMITS)
    with pytest.raises(ValueError, match="Upload an image first"):
        read_edit(None, LIMITS)


def test_what_is_no_image_is_refused(tmp_path, photo):
    text = tmp_path / "a.png"
    text.write_text("not an image")
    with pytest.raises(ValueError, match="not an image that can be read"):
        read_upload(text, LIMITS)
    noise = Image.effect_noise((200, 200), 50)
    noise.save(tmp_path / "whole.png")
    cut = tmp_path / "cut.png"
    cut.write_bytes((tmp_path / "whole.png").read_bytes()[:3000])
    with pytest.raises(ValueError, match="not an image that can be read"):
        read_upload(cut, LIMITS)


def test_sizes_are_limited(tmp_path):
    wide = tmp_path / "wide.png"
    Image.new("L", (2000, 1000)).save(wide)
    with pytest.raises(ValueError, match="2000 x 1000 pixels; this page takes up to 1 megapixels"):
        read_upload(wide, LIMITS)
    Image.new("L", (3, 50)).save(wide)
    with pytest.raises(ValueError, match="3 x 50 pixels; it needs 4"):
        read_upload(wide, LIMITS)
    wide.write_bytes(bytes(2**20 + 1))
    with pytest.raises(ValueError, match="larger than 1 MB"):
        read_upload(wide, LIMITS)


def test_paint_of_all_layers_is_the_mask(tmp_path, photo):
    layers = [layer(tmp_path / "1.png", (0, 0, 5, 10)), layer(tmp_path / "2.png", (15, 0, 20, 10))]
    mask = read_edit({"background": str(photo), "layers": layers}, LIMITS).mask
    assert [mask.getpixel((x, 5)) for x in (2, 10, 17)] == [255, 0, 255]


def test_layers_without_paint_are_no_mask(tmp_path, photo):
    edited = {"background": str(photo), "layers": [layer(tmp_path / "1.png")]}
    assert read_edit(edited, LIMITS).mask is None
    other = {"background": str(photo), "layers": [layer(tmp_path / "1.png", (0, 0, 20, 20), (40, 20))]}
    assert read_edit(other, LIMITS).mask.size == (20, 10)
