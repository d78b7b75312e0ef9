# SPDX-License-Identifier: Apache-2.0
"""Folders that are either complete or not there: written beside, listed in a manifest, flushed, and then renamed.

What a killed process leaves is put right by `finish_interrupted` at the next start: a folder that was complete gets
its name, and one that was not is removed.
"""

import contextlib
import json
import os
import shutil
import zlib
from collections.abc import Iterator
from pathlib import Path

MANIFEST = "manifest.json"
UNFINISHED = ".unfinished-"  # being written, or being removed
REPLACED = ".replaced-"  # what had the name before, until the new folder has it


@contextlib.contextmanager
def complete_folder(final: Path) -> Iterator[Path]:
    """Give a folder to write into, which becomes `final` when the block ends, and vanishes when it fails.

    All files are on the disk, with their sizes and checksums in a manifest, before the folder gets its name. What had
    the name before, a folder, a file or a link, is removed after that.
    """
    beside = final.with_name(f"{UNFINISHED}{final.name}")
    remove(beside)
    beside.mkdir(parents=True)
    try:
        yield beside
        write_manifest(beside)
        _rename(beside, final)
    except BaseException:
        shutil.rmtree(beside, ignore_errors=True)
        raise


def _rename(beside: Path, final: Path) -> None:
    """Give a finished folder its name, and take it from what had it before."""
    replaced = final.with_name(f"{REPLACED}{final.name}")
    remove(replaced)
    if not os.path.lexists(final):
        os.replace(beside, final)
    else:
        os.replace(final, replaced)
        try:
            os.replace(beside, final)
        except OSError:
            os.replace(replaced, final)
            raise
    flush(final.parent)
    remove(replaced)


def write_manifest(folder: Path) -> None:
    """Put all files of a folder on the disk, and their sizes and checksums into its manifest."""
    entries = {}
    for file in sorted(path for path in folder.rglob("*") if path.is_file()):
        entries[file.relative_to(folder).as_posix()] = {"size": file.stat().st_size, "crc32": checksum(file)}
        flush(file)
    (folder / MANIFEST).write_text(json.dumps(entries, indent=2), encoding="utf-8")
    flush(folder / MANIFEST)


def finish_interrupted(parent: Path) -> None:
    """Put right what a killed process left in `parent`: complete the swaps that can be, and clear away the rest."""
    for replaced in parent.glob(f"{REPLACED}*"):
        final = parent / replaced.name.removeprefix(REPLACED)
        beside = parent / f"{UNFINISHED}{final.name}"
        if not os.path.lexists(final):
            os.replace(replaced if damage(beside) is not None else beside, final)
        remove(replaced)
    for folder in parent.glob(f"{UNFINISHED}*"):
        remove(folder)


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
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
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


def remove(path: Path) -> None:
    """Remove a folder with all that is in it, a file, or a link but not what it leads to; if it is there.

    A folder first gets a name that says so: whoever is killed on the way leaves no half of it under the old one.
    """
    if path.is_dir() and not path.is_symlink():
        if not path.name.startswith((UNFINISHED, REPLACED)):
            removed = path.with_name(f"{UNFINISHED}{path.name}")
            shutil.rmtree(removed, ignore_errors=True)
            os.replace(path, removed)
            path = removed
        shutil.rmtree(path)
    elif os.path.lexists(path):
        path.unlink()
