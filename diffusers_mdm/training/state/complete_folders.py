# SPDX-License-Identifier: Apache-2.0
"""Folders that are either complete or not there: written beside, listed in a manifest, flushed, and then renamed."""

import contextlib
import json
import os
import shutil
import zlib
from collections.abc import Iterator
from pathlib import Path

MANIFEST = "manifest.json"
UNFINISHED = ".unfinished-"


@contextlib.contextmanager
def complete_folder(final: Path) -> Iterator[Path]:
    """Give a folder to write into, which becomes `final` when the block ends, and vanishes when it fails.

    All files are on the disk, with their sizes and checksums in a manifest, before the folder gets its name.
    """
    beside = final.with_name(f"{UNFINISHED}{final.name}")
    shutil.rmtree(beside, ignore_errors=True)
    beside.mkdir(parents=True)
    try:
        yield beside
        entries = {}
        for file in sorted(path for path in beside.rglob("*") if path.is_file()):
            entries[file.relative_to(beside).as_posix()] = {"size": file.stat().st_size, "crc32": checksum(file)}
            flush(file)
        (beside / MANIFEST).write_text(json.dumps(entries, indent=2), encoding="utf-8")
        flush(beside / MANIFEST)
        shutil.rmtree(final, ignore_errors=True)
        beside.rename(final)
        flush(final.parent)
    except BaseException:
        shutil.rmtree(beside, ignore_errors=True)
        raise


def damage(folder: Path) -> str | None:
    """What is wrong with a folder that `complete_folder` wrote, in a few words; None if nothing is."""
    try:
        entries = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
        for name, entry in entries.items():
            file = folder / name
            if not file.is_file():
                return f"{name} is missing"
            if file.stat().st_size != entry["size"]:
                return f"{name} has {file.stat().st_size} bytes instead of {entry['size']}"
            if checksum(file) != entry["crc32"]:
                return f"the contents of {name} have changed"
    except FileNotFoundError:
        return f"{MANIFEST} is missing"
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        return f"{MANIFEST} cannot be read ({error})"
    return None


def checksum(file: Path) -> int:
    """CRC-32 of a file's bytes: against accidents, not against forgers."""
    value = 0
    with file.open("rb") as stream:
        while block := stream.read(2**22):
            value = zlib.crc32(block, value)
    return value


def flush(path: Path) -> None:
    """Ask the system to put a file or a folder's entries on the disk; systems that cannot open folders do without."""
    if path.is_dir() and os.name == "nt":
        return
    # Windows flushes only what may be written to; elsewhere a file that is read-only can be flushed, too.
    handle = os.open(path, os.O_RDWR if os.name == "nt" else os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def remove_unfinished(parent: Path) -> None:
    """Clear away what was being written when a process was killed."""
    for folder in parent.glob(f"{UNFINISHED}*"):
        shutil.rmtree(folder, ignore_errors=True)
