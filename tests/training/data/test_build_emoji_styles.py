# SPDX-License-Identifier: Apache-2.0
"""The command that builds the emoji data set at another side, on tiny archives."""

import dataclasses
import hashlib
import importlib.util
import io
import sys
import tarfile
from pathlib import Path

import datasets
import pytest
from PIL import Image

from diffusers_mdm.training.data.sources import open_training_images, open_validation_images
from diffusers_mdm.training.recipe.data import DataRecipe

SCRIPT = Path(__file__).parents[3] / "training" / "data" / "build_emoji_styles.py"
SHEET = b"""<?xml version="1.0"?><svg xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink">
<style>svg{display:none}</style>
<svg viewBox="0 0 4 4" id="0023-FE0F-20E3"><g id="inside"><rect id="a" width="4" height="4" fill="red"/></g></svg>
<svg viewBox="0 0 4 4" id="1F438"><use xlink:href="#a"/></svg></svg>"""


@pytest.fixture(scope="module")
def script():
    spec = importlib.util.spec_from_file_location("build_emoji_styles", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    yield module
    del sys.modules[spec.name]


def drawing(color: str, size: tuple[int, int] = (8, 8)) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGBA", size, color).save(buffer, "WEBP", lossless=True)
    return buffer.getvalue()


def write_archive(path: Path, files: dict[str, bytes], *others: tarfile.TarInfo) -> Path:
    with tarfile.open(path, "w:gz") as tar:
        for name, content in files.items():
            entry = tarfile.TarInfo(name)
            entry.size = len(content)
            tar.addfile(entry, io.BytesIO(content))
        for entry in others:
            tar.addfile(entry)
    return path


def style_of(script, archive: Path, suffix: str = ".webp", fit: int = 256):
    content = archive.read_bytes()
    digest = hashlib.sha256(content).hexdigest()
    return script.Style("a-package@1.0.0", archive.name, len(content), digest, suffix, fit)


def test_only_regular_files_are_read_and_nothing_is_unpacked(script, tmp_path):
    link = tarfile.TarInfo("package/link.webp")
    link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
    files = {"package/a.webp": b"a", "../../outside.webp": b"b", "/absolute.webp": b"c", "package/a.js": b"code"}
    archive = write_archive(tmp_path / "a.tgz", files, link)
    assert dict(script.read_files(archive, ".webp")) == {
        name: content for name, content in files.items() if name.endswith(".webp")
    }
    assert list(tmp_path.iterdir()) == [archive]
    assert not (tmp_path.parent.parent / "outside.webp").exists()


@pytest.mark.parametrize("limit", ["MAX_FILE_BYTES", "MAX_ARCHIVE_BYTES"])
def test_archives_that_unpack_to_too_much_are_refused(script, tmp_path, monkeypatch, limit):
    archive = write_archive(tmp_path / "a.tgz", {"package/a.webp": bytes(100), "package/b.txt": bytes(100)})
    monkeypatch.setattr(script, limit, 99 if limit == "MAX_FILE_BYTES" else 199)
    with pytest.raises(ValueError, match="unpacks to more than it should"):
        list(script.read_files(archive, ".webp"))


def test_damaged_archives_are_refused(script, tmp_path):
    archive = write_archive(tmp_path / "a.tgz", {"package/a.webp": bytes(range(256)) * 20})
    archive.write_bytes(archive.read_bytes()[:-40])
    with pytest.raises(ValueError, match=r"a\.tgz cannot be read"):
        list(script.read_files(archive, ".webp"))


@pytest.mark.parametrize("spoil", [lambda content: content + b"x", lambda content: content[:-1] + b"x"])
def test_another_archive_than_expected_is_not_opened(script, tmp_path, spoil):
    archive = write_archive(tmp_path / "a.tgz", {"package/a.webp": b"a"})
    style = style_of(script, archive)
    assert script.fetch(style, tmp_path) == archive
    archive.write_bytes(spoil(archive.read_bytes()))
    with pytest.raises(
        ValueError, match=r"a\.tgz is not the file of a-package@1\.0\.0.*Delete it to download it again"
    ):
        script.fetch(style, tmp_path)


def test_without_npm_the_archive_has_to_be_there(script, tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    style = script.STYLES["noto"]
    with pytest.raises(ValueError, match=r"npm is needed to download @svgmoji/noto@3\.2\.0; install it, or put"):
        script.fetch(style, tmp_path / "packages")
    assert not (tmp_path / "packages").exists()


@pytest.mark.skipif(sys.platform == "win32", reason="the program in this test is a shell script")
def test_what_npm_says_is_passed_on(script, tmp_path, monkeypatch):
    (tmp_path / "npm").write_text("#!/bin/sh\necho first >&2\necho no such package >&2\nexit 1\n")
    (tmp_path / "npm").chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    with pytest.raises(ValueError, match=r"npm could not download @svgmoji/noto@3\.2\.0: no such package"):
        script.fetch(script.STYLES["noto"], tmp_path / "packages")
    assert not list((tmp_path / "packages").iterdir())


@pytest.mark.parametrize(
    ("name", "code"),
    [("0023-FE0F-20E3", "23-20e3"), ("1f438", "1f438"), ("1F1E6_1F1E8", "1f1e6-1f1e8"), ("00a9", "a9")],
)
def test_codes_are_compared_in_one_form(script, name, code):
    assert script.code_of(name) == code


def test_sprites_are_files_of_their_own(script):
    found = dict(script.sprites(SHEET))
    assert list(found) == ["23-20e3", "1f438"]
    assert b'fill="red"' in found["23-20e3"]
    assert b"1999/xlink" in found["1f438"]
    for wrong in (b"<svg", b'<!DOCTYPE a [<!ENTITY b "c">]><svg xmlns="http://www.w3.org/2000/svg">&b;</svg>'):
        with pytest.raises(ValueError, match="sprite sheet"):
            list(script.sprites(wrong))


@pytest.mark.parametrize("side", [64, 512])
def test_drawings_are_centred_on_white(script, tmp_path, side):
    style = style_of(script, write_archive(tmp_path / "a.tgz", {}), fit=128)
    image = script.render(style, drawing("#ff000080", (8, 4)), side)
    assert image.size == (side, side)
    red = [[image.getpixel((x, y))[1] < 250 for x in range(side)] for y in range(side)]
    assert sum(red[side // 2]) == pytest.approx(side / 2, abs=2)  # as wide as `fit` says
    assert sum(row[side // 2] for row in red) == pytest.approx(side / 4, abs=2)
    middle = image.getpixel((side // 2, side // 2))
    assert middle[0] == 255
    assert middle[1] == pytest.approx(127, abs=1)
    assert image.getpixel((0, 0)) == (255, 255, 255)


def test_vector_images_are_rendered_sharply(script, tmp_path):
    pytest.importorskip("resvg_py")
    style = style_of(script, write_archive(tmp_path / "a.tgz", {}), suffix=".svg", fit=192)
    image = script.render(style, dict(script.sprites(SHEET))["23-20e3"], 256)
    assert image.getpixel((31, 128)) == (255, 255, 255)
    assert image.getpixel((32, 128)) == image.getpixel((223, 128)) == (255, 0, 0)


@pytest.fixture
def small(script, tmp_path, monkeypatch):
    """Two styles with two drawings each, and a data set with three of them."""
    packages = tmp_path / "packages"
    packages.mkdir()
    styles = {}
    for name, colors in {"one": ("red", "lime"), "two": ("blue", "black")}.items():
        files = {f"package/{code}.webp": drawing(color) for code, color in zip(("1f438", "a9"), colors, strict=True)}
        styles[name] = style_of(script, write_archive(packages / f"{name}.tgz", files))
    monkeypatch.setattr(script, "STYLES", styles)
    data_dir = tmp_path / "data"
    data_dir.mkdir()
    (data_dir / "README.md").write_text("Emoji, 64 pixels (lossless WebP, pixels rounded to multiples of 5)")
    features = datasets.Features(
        {
            "image": datasets.Image(),
            "text": datasets.Value("string"),
            "style": datasets.ClassLabel(names=["one", "two"]),
            "hexcode": datasets.Value("string"),
        }
    )
    rows = [("frog one", 0, "1F438"), ("copyright two", 1, "00A9"), ("frog two", 1, "1F438")]
    for split, chosen in {"train": rows[:2], "validation": rows[2:]}.items():
        text, style, code = zip(*chosen, strict=True)
        cells = [{"bytes": drawing("white"), "path": f"{number}.png"} for number in range(len(chosen))]
        table = datasets.Dataset.from_dict(
            {"image": cells, "text": text, "style": style, "hexcode": code}, features=features
        )
        table.to_parquet(str(data_dir / f"{split}-00000-of-00001.parquet"))
    return packages, data_dir


def test_the_records_stay_and_their_images_are_new(script, small, tmp_path, monkeypatch):
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")
    packages, data_dir = small
    output = tmp_path / "built"
    script.build(32, packages, data_dir, output, 1)
    recipe = DataRecipe(path=str(output), validation_split="validation", label_column="style")
    batch = open_training_images(recipe, 32).images.load([0, 1])
    assert batch.captions == ["frog one", "copyright two"]
    assert batch.class_labels.tolist() == [0, 1]
    assert batch.pixels[:, :, 16, 16].tolist() == [[255, 0, 0], [0, 0, 0]]
    assert open_validation_images(recipe, 32).load([0]).pixels[0, :, 16, 16].tolist() == [0, 0, 255]
    assert (output / "README.md").read_text() == "Emoji, 32 pixels (lossless WebP)"
    with pytest.raises(ValueError, match="exists; delete it to build the data set again"):
        script.build(32, packages, data_dir, output, 1)


def test_nothing_is_left_of_a_data_set_that_lacks_a_drawing(script, small, tmp_path, monkeypatch):
    packages, data_dir = small
    archive = write_archive(packages / "two.tgz", {"package/1f438.webp": drawing("blue")})
    monkeypatch.setitem(script.STYLES, "two", dataclasses.replace(style_of(script, archive)))
    with pytest.raises(ValueError, match="no drawing of 00A9 in the style 'two'"):
        script.build(32, packages, data_dir, tmp_path / "new" / "built", 1)
    assert list((tmp_path / "new").iterdir()) == []


@pytest.mark.parametrize("words", [["--side", "4"], ["--side", "4096"], ["--num_workers", "0"]])
def test_wrong_numbers_end_the_command_in_one_line(script, capsys, words):
    with pytest.raises(SystemExit):
        script.parse_arguments(words)
    assert "expected" in capsys.readouterr().err.splitlines()[-1]
