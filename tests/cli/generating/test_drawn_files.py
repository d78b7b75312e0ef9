# SPDX-License-Identifier: Apache-2.0
"""Names of generated files, and files that are complete or not there."""

from pathlib import Path

import pytest
from PIL import Image

from diffusers_mdm.cli.generating.drawn_files import FileNames, slug, write_clip, write_image


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("A red fox, 3D render!", "a_red_fox_3d_render"),
        ("../../etc/passwd", "etc_passwd"),
        ("рыжая лиса", "рыжая_лиса"),
        ("…", "image"),
        ("x" * 300, "x" * 60),
    ],
)
def test_prompts_become_names_on_any_system(text, name):
    assert slug(text) == name


def test_levels_are_told_apart():
    assert FileNames(Path("out"), "{index:02d}", "png", True).path(3, "a", 0, "16") == Path("out/03-16.png")
    assert FileNames(Path("out"), "{level}-{seed}", "png", True).path(3, "a", 5, "16") == Path("out/16-5.png")


@pytest.mark.parametrize("pattern", ["", "a/b", "{index", "{0}", "{}", "{index:xyz}", "{prompt!z}", "{side}"])
def test_wrong_patterns_are_refused(pattern):
    with pytest.raises(ValueError, match="--name"):
        FileNames(Path("out"), pattern, "png")


def test_a_file_that_cannot_be_written_leaves_nothing(tmp_path):
    with pytest.raises(ValueError, match="extension"):
        write_image(Image.new("RGB", (8, 8)), tmp_path / "a.unknown", {})
    with pytest.raises(ValueError, match="above 0"):
        write_clip([Image.new("RGB", (8, 8))], tmp_path / "a.webp", 0)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("suffix", ["webp", "gif", "mp4"])
def test_clips_have_all_frames(suffix, tmp_path):
    frames = [Image.new("RGB", (16, 16), color) for color in ("red", "lime", "blue")]
    path = tmp_path / f"clip.{suffix}"
    write_clip(frames, path, 4)
    if suffix == "mp4":
        imageio = pytest.importorskip("imageio.v2")
        assert sum(1 for _ in imageio.get_reader(path)) == 3
    else:
        with Image.open(path) as clip:
            assert clip.n_frames == 3
            clip.seek(1)
            clip.load()
            assert clip.info["duration"] == 250
    assert [path.name for path in tmp_path.iterdir()] == [path.name]
