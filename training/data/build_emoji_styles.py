# SPDX-License-Identifier: Apache-2.0
"""Build the emoji data set at another side, from the npm packages that the images came from.

    pip install resvg-py
    python training/data/build_emoji_styles.py --side 256

The records (captions, classes, splits and their order) are those of training/data/emoji-styles-64; the images are
rendered anew. `npm pack` downloads the archives, 30 MB. Each must have the size and the SHA-256 in `STYLES`; it is
read in memory and never unpacked, and nothing in it is executed.
"""

import argparse
import functools
import hashlib
import io
import os
import shutil
import subprocess
import tarfile
import tempfile
import xml.etree.ElementTree as ET
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

DATA_DIR = Path(__file__).resolve().parent
SHIPPED = DATA_DIR / "emoji-styles-64"
SPLITS = ("train", "validation")
SOURCE_SIDE = 256  # side of the 3D renders; smaller images are averaged down from this side
LARGEST_SIDE = 2048
# Limits of what an archive may contain; the largest file is the sprite sheet of Noto, with 28 MB.
MAX_FILE_BYTES, MAX_ARCHIVE_BYTES = 64 * 2**20, 256 * 2**20
NPM_SECONDS = 600
SVG = "http://www.w3.org/2000/svg"


@dataclass(frozen=True)
class Style:
    """A drawing style, and the archive with its images.

    Attributes:
        package: name and version of the npm package.
        archive: name of its file.
        size: size of the file in bytes.
        sha256: hash of the file.
        suffix: suffix of the images; a name with a folder is a sprite sheet that contains all of them.
        fit: side of the drawing, of 256; the rest is a white margin.
    """

    package: str
    archive: str
    size: int
    sha256: str
    suffix: str
    fit: int


STYLES = {
    "fluent-3d": Style(
        "@lobehub/fluent-emoji-3d@1.1.0",
        "lobehub-fluent-emoji-3d-1.1.0.tgz",
        15792027,
        "c1bb7eee7de090205a232518a9ab4adb3df458bfbe8a1f78232991194c8b2e58",
        ".webp",
        256,
    ),
    "fluent-flat": Style(
        "@lobehub/fluent-emoji-flat@1.1.0",
        "lobehub-fluent-emoji-flat-1.1.0.tgz",
        7607263,
        "8f9113c027c7c20eced0070354715a4093a459b8bef6332b91d45f38c9bdb147",
        ".svg",
        256,
    ),
    "twemoji": Style(
        "@twemoji/svg@15.0.0",
        "twemoji-svg-15.0.0.tgz",
        1547134,
        "1d2907557a422c7c4e3feca50ef915c39da1db3d76b4a4d7e73fb59bce4403c3",
        ".svg",
        228,
    ),
    "noto": Style(
        "@svgmoji/noto@3.2.0",
        "svgmoji-noto-3.2.0.tgz",
        5012882,
        "4bd1ef9824efaa08f124541a4c3420899a273333169aada20761384f9c7a35d0",
        "sprites/all.svg",
        244,
    ),
}


# --- archives ---


def fetch(style: Style, folder: Path) -> Path:
    """Return the archive of a style, downloaded by npm if it is not in `folder` yet.

    Raises:
        ValueError: npm is missing or fails, or the archive is another one than expected.
    """
    path = folder / style.archive
    if not path.exists():
        npm = shutil.which("npm")
        if npm is None:
            raise ValueError(f"npm is needed to download {style.package}; install it, or put {path.name} in {folder}.")
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder) as beside:
            # The package is only downloaded: nothing of it runs.
            quiet: dict[str, Any] = {"capture_output": True, "encoding": "utf-8", "errors": "replace", "check": False}
            command = [npm, "pack", style.package, "--pack-destination", beside, "--ignore-scripts", "--silent"]
            try:
                done = subprocess.run(command, **quiet, timeout=NPM_SECONDS)
            except subprocess.TimeoutExpired:
                raise ValueError(
                    f"npm did not download {style.package} in {NPM_SECONDS} seconds; try again."
                ) from None
            found = Path(beside) / style.archive
            if not found.is_file():
                reason = (done.stderr.strip().splitlines() or ["no reason was given"])[-1]
                raise ValueError(f"npm could not download {style.package}: {reason}")
            check_archive(found, style)
            os.replace(found, path)
    check_archive(path, style)
    return path


def check_archive(path: Path, style: Style) -> None:
    """Check size and hash of an archive.

    Raises:
        ValueError: it is another file than the one that the data set was made from.
    """
    size = path.stat().st_size
    digest = hashlib.sha256(path.read_bytes()).hexdigest() if size == style.size else "not computed"
    if digest != style.sha256:
        raise ValueError(
            f"{path} is not the file of {style.package} that the images came from: it has {size:,} bytes and the "
            f"SHA-256 {digest}, expected {style.size:,} bytes and {style.sha256}. Delete it to download it again."
        )


def read_files(archive: Path, suffix: str) -> Iterator[tuple[str, bytes]]:
    """Yield the regular files of a tar archive whose names end with `suffix`, with their contents.

    Raises:
        ValueError: the archive is damaged, or its files are larger than they may be.
    """
    total = 0
    try:
        with tarfile.open(archive, "r:gz") as tar:
            for member in tar:
                total += member.size
                if member.size > MAX_FILE_BYTES or total > MAX_ARCHIVE_BYTES:
                    raise ValueError(f"{archive} unpacks to more than it should: {member.name[:80]!r} is too large.")
                if member.isreg() and member.name.endswith(suffix):
                    content = tar.extractfile(member)
                    assert content is not None  # regular files have one
                    yield member.name, content.read()
    except (tarfile.TarError, EOFError, OSError) as error:
        raise ValueError(f"{archive} cannot be read: {error}") from error


# --- drawings ---


def code_of(name: str) -> str:
    """Return the Unicode code of an emoji in one form: lower case, without leading zeros and variation selectors."""
    parts = (part.lstrip("0") for part in name.lower().replace("_", "-").split("-"))
    return "-".join(part for part in parts if part != "fe0f")


def drawings(style: Style, archive: Path) -> dict[str, bytes]:
    """Return the files of a style's images by code."""
    files = dict(read_files(archive, style.suffix))
    if "/" not in style.suffix:
        return {code_of(Path(name).stem): content for name, content in files.items()}
    return dict(entry for content in files.values() for entry in sprites(content))


def sprites(sheet: bytes) -> Iterator[tuple[str, bytes]]:
    """Yield the images of an SVG sprite sheet by code: its children with an id, each as an SVG file of its own.

    Raises:
        ValueError: the sheet is not XML, or defines entities.
    """
    if b"<!DOCTYPE" in sheet or b"<!ENTITY" in sheet:
        raise ValueError("The sprite sheet defines XML entities, which no image needs.")
    try:
        root = ET.fromstring(sheet)
    except ET.ParseError as error:
        raise ValueError(f"The sprite sheet is not XML: {error}") from error
    ET.register_namespace("", SVG)
    for child in root:
        name = child.get("id")
        if child.tag == f"{{{SVG}}}svg" and name:
            yield code_of(name), ET.tostring(child)


def render(style: Style, content: bytes, side: int) -> Any:
    """Return a drawing on white as a PIL image of `side` pixels, RGB.

    Smaller images than 256 pixels are rendered at 256 and then resized, as the shipped ones were.
    """
    from PIL import Image

    large = max(side, SOURCE_SIDE)
    fit = round(style.fit * large / SOURCE_SIDE)
    if style.suffix.endswith(".svg"):
        import resvg_py

        text = content.decode("utf-8")
        content = bytes(resvg_py.svg_to_bytes(svg_string=text, width=fit, height=fit, skip_system_fonts=True))
    with Image.open(io.BytesIO(content), formats=["PNG", "WEBP"]) as file:
        drawing = file.convert("RGBA")
    scale = fit / max(drawing.size)
    if scale != 1:
        size = [max(1, round(pixels * scale)) for pixels in drawing.size]
        drawing = drawing.resize((size[0], size[1]), Image.Resampling.LANCZOS)
    image = Image.new("RGBA", (large, large), "white")
    image.alpha_composite(drawing, ((large - drawing.width) // 2, (large - drawing.height) // 2))
    whole = image.convert("RGB")
    return whole if side == large else whole.resize((side, side), Image.Resampling.LANCZOS)


def encoded(side: int, drawing: tuple[Style, bytes]) -> bytes:
    """Return a drawing, given by style and content, as a lossless WebP file."""
    buffer = io.BytesIO()
    render(*drawing, side).save(buffer, "WEBP", lossless=True, quality=80, method=4)
    return buffer.getvalue()


def encode_all(found: Sequence[tuple[Style, bytes]], side: int, num_workers: int) -> Iterator[bytes]:
    """Yield the WebP files of drawings in order, made by several processes."""
    if num_workers == 1:
        yield from map(functools.partial(encoded, side), found)
        return
    with ProcessPoolExecutor(num_workers) as pool:
        yield from pool.map(functools.partial(encoded, side), found, chunksize=16)


# --- the data set ---


def drawings_of(table: Any, found: Mapping[str, Mapping[str, bytes]]) -> list[tuple[Style, bytes]]:
    """Return style and drawing of every record of a table.

    Raises:
        ValueError: a record has no drawing.
    """
    import datasets

    names = datasets.Features.from_arrow_schema(table.schema)["style"].names
    chosen = []
    for number, code in zip(table["style"].to_pylist(), table["hexcode"].to_pylist(), strict=True):
        style = names[number]
        content = found.get(style, {}).get(code_of(code))
        if content is None:
            raise ValueError(f"There is no drawing of {code} in the style {style!r}.")
        chosen.append((STYLES[style], content))
    return chosen


def with_images(table: Any, images: Sequence[bytes]) -> Any:
    """Return a table with other images; its other columns, and their types, stay as they are."""
    import pyarrow

    place = table.schema.get_field_index("image")
    paths = [f"{Path(cell['path'] or 'image').stem}.webp" for cell in table["image"].to_pylist()]
    cells = [{"bytes": content, "path": path} for content, path in zip(images, paths, strict=True)]
    column = pyarrow.array(cells, type=table.schema.field(place).type)
    return table.set_column(place, table.schema.field(place), column)


def card(text: str, side: int) -> str:
    """Return the card of the shipped data set, changed for another side."""
    words = {"64 pixels": f"{side} pixels", "emoji-styles-64": f"emoji-styles-{side}"}
    words["lossless WebP, pixels rounded to multiples of 5"] = "lossless WebP"
    return functools.reduce(lambda page, word: page.replace(word, words[word]), words, text)


def build(side: int, packages_dir: Path, data_dir: Path, output_dir: Path, num_workers: int) -> None:
    """Write the data set with images of `side` pixels.

    Args:
        side: width and height of the images.
        packages_dir: the archives, or where to put them.
        data_dir: the data set whose records are used.
        output_dir: folder to write, which must not exist; it appears when it is complete.
        num_workers: processes that render images.

    Raises:
        ValueError: the output exists, or an archive or drawing is missing or wrong.
    """
    import pyarrow.parquet
    from diffusers.utils.logging import tqdm

    if output_dir.exists():
        raise ValueError(
            f"{output_dir} exists; delete it to build the data set again, or choose another --output_dir."
        )
    found = {name: drawings(style, fetch(style, packages_dir)) for name, style in STYLES.items()}
    output_dir.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=output_dir.parent, prefix=".unfinished-") as temporary:
        beside = Path(temporary) / output_dir.name
        beside.mkdir()
        for split in SPLITS:
            name = f"{split}-00000-of-00001.parquet"
            table = pyarrow.parquet.read_table(data_dir / name)
            chosen = drawings_of(table, found)
            made = encode_all(chosen, side, num_workers)
            images = list(tqdm(made, desc=split, total=len(chosen), unit=" images"))
            pyarrow.parquet.write_table(with_images(table, images), beside / name, row_group_size=100)
        page = (data_dir / "README.md").read_text(encoding="utf-8")
        (beside / "README.md").write_text(card(page, side), encoding="utf-8")
        os.replace(beside, output_dir)


def parse_arguments(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """Parse the command line."""
    assert __doc__ is not None
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--side", type=int, default=256, metavar="PIXELS", help="side of the images (default: 256)")
    parser.add_argument(
        "--packages_dir",
        type=Path,
        metavar="FOLDER",
        help="archives that have been downloaded, and where to keep those that are (default: a temporary folder)",
    )
    parser.add_argument("--data_dir", type=Path, default=SHIPPED, metavar="FOLDER", help="data set with the records")
    parser.add_argument("--output_dir", type=Path, metavar="FOLDER", help="(default: training/data/emoji-styles-SIDE)")
    parser.add_argument(
        "--num_workers", type=int, default=os.cpu_count(), metavar="N", help="processes (default: one per CPU core)"
    )
    args = parser.parse_args(arguments)
    if not 8 <= args.side <= LARGEST_SIDE:
        parser.error(f"--side is {args.side}; expected 8 to {LARGEST_SIDE} pixels.")
    if args.num_workers < 1:
        parser.error(f"--num_workers is {args.num_workers}; expected at least 1.")
    return args


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command; errors end it with one line that says what to do."""
    args = parse_arguments(arguments)
    output_dir = args.output_dir or DATA_DIR / f"emoji-styles-{args.side}"
    try:
        import resvg_py  # noqa: F401  # missed at once, not after the download

        with tempfile.TemporaryDirectory() as temporary:
            build(args.side, args.packages_dir or Path(temporary), args.data_dir, output_dir, args.num_workers)
    except ModuleNotFoundError as error:
        raise SystemExit(f"error: {error}; run: pip install {str(error.name).replace('_', '-')}") from error
    except (OSError, ValueError) as error:
        raise SystemExit(f"error: {error}") from error
    print(f"Wrote {output_dir}")


if __name__ == "__main__":
    main()
