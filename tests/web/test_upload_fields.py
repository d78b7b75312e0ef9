# SPDX-License-Identifier: Apache-2.0
"""Files reach our own checks unread; the editor refuses what is too large before decoding it."""

import io
from pathlib import Path
from types import SimpleNamespace

import gradio as gr
import pytest
from PIL import Image

from diffusers_mdm.web import upload_fields
from diffusers_mdm.web.upload_fields import image_field, paint_field


def png(side):
    file = io.BytesIO()
    Image.new("RGBA", (side, side), (0, 0, 0, 0)).save(file, "PNG")
    return file.getvalue()


@pytest.fixture
def editor():
    return paint_field(100, format="png")


def test_paths_are_handed_on_unread(tmp_path):
    path = str(tmp_path / "not an image.png")
    assert image_field().preprocess(SimpleNamespace(path=path)) == path
    assert image_field().preprocess(None) is None


def test_nothing_is_written_beside_the_package():
    assert not list(Path(upload_fields.__file__).parent.glob("*.pyi"))


def test_the_editor_reads_small_images(editor):
    with Image.open(editor.convert_and_format_image(png(10))) as image:
        assert image.size == (10, 10)
    assert editor.convert_and_format_image(None) is None


@pytest.mark.parametrize(("content", "message"), [(png(11), "megapixels"), (b"nothing", "not an image")])
def test_the_editor_refuses_the_rest_in_words(editor, tmp_path, content, message):
    path = tmp_path / "a.png"
    path.write_bytes(content)
    for file in (content, SimpleNamespace(path=str(path), orig_name="a.png")):
        with pytest.raises(gr.Error, match=message):
            editor.convert_and_format_image(file)
