# SPDX-License-Identifier: Apache-2.0
"""Image files of all kinds, whole and broken, and tar files that hold them."""

import io
import json
import struct
import tarfile
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path

from PIL import Image


def encoded(image: Image.Image, form: str = "PNG", **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, form, **options)
    return buffer.getvalue()


def png(color: object = "red", size: tuple[int, int] = (16, 16), mode: str = "RGB") -> bytes:
    return encoded(Image.new(mode, size, color))


def png_bomb(side: int = 20_000, depth: int = 1) -> bytes:
    """A small PNG file that says it has side x side black pixels, of which a depth above 1 bit has them all."""

    def chunk(name: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))

    header = struct.pack(">IIBBBBB", side, side, depth, 0, 0, 0, 0)
    rows = zlib.compress(bytes(1 + side * depth // 8) * (64 if depth == 1 else side))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", rows) + chunk(b"IEND", b"")


def write_tar(path: Path, samples: Sequence[tuple[str, Mapping[str, bytes | str | dict]]]) -> Path:
    """A WebDataset shard: for each sample its key and the contents of its parts by suffix."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as tar:
        for key, parts in samples:
            for suffix, content in parts.items():
                if isinstance(content, dict):
                    content = json.dumps(content)
                data = content if isinstance(content, bytes) else content.encode()
                member = tarfile.TarInfo(f"{key}.{suffix}")
                member.size = len(data)
                tar.addfile(member, io.BytesIO(data))
    return path


def write_shards(folder: Path, num_shards: int, samples_per_shard: int) -> list[str]:
    """Shards in the layout of CC12M; sample i of shard s is a plain image with the caption "s i"."""
    paths = []
    for shard in range(num_shards):
        samples = [
            (f"{shard:05d}{number:04d}", {"jpg": png((shard * 40, number * 5, 0)), "txt": f"{shard} {number}"})
            for number in range(samples_per_shard)
        ]
        paths.append(str(write_tar(folder / f"{shard:05d}.tar", samples)))
    return paths
