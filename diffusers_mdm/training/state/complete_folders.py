# SPDX-License-Identifier: Apache-2.0
"""Writing folders atomically: under a temporary name, listed in a manifest, flushed, and then renamed.

What a killed process leaves is cleaned up by `finish_interrupted` at the next start: a complete folder gets its final
name, and an incomplete one is removed.
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
REPLACED = ".replaced-"  # the previous holder of the name, until the new folder has it


@contextlib.contextmanager
def complete_folder(final: Path) -> Iterator[Path]:
    """Provide a temporary folder that is renamed to `final` when the block ends, and removed if it fails.

    All files are flushed to disk, with their sizes and checksums in a manifest, before the folder gets its name. A
    previous folder, file or link of that name is removed afterwards.
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
    """Rename a finished folder, replacing the previous holder of the name."""
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
    """Flush all files of a folder to disk, and write their sizes and checksums into its manifest."""
    entries = {}
    for file in sorted(path for path in folder.rglob("*") if path.is_file()):
        entries[file.relative_to(folder).as_posix()] = {"size": file.stat().st_size, "crc32": checksum(file)}
        flush(file)
    (folder / MANIFEST).write_text(json.dumps(entries, indent=2), encoding="utf-8")
    flush(folder / MANIFEST)


def finish_interrupted(parent: Path) -> None:
    """Clean up what a killed process left in `parent`: complete interrupted replacements, and remove the rest."""
    for replaced in parent.glob(f"{REPLACED}*"):
        final = parent / replaced.name.removeprefix(REPLACED)
        beside = parent / f"{UNFINISHED}{final.name}"
        if not os.path.lexists(final):
            os.replace(replaced if damage(beside) is not None else beside, final)
        remove(replaced)
    for folder in parent.glob(f"{UNFINISHED}*"):
        remove(folder)


def damage(folder: Path) -> str | None:
    """Describe what is wrong with a folder that `complete_folder` wrote; None if it is intact."""
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
    """Return the CRC-32 of a file, which detects accidents, not forgeries."""
    value = 0
    with file.open("rb") as stream:
        while block := stream.read(2**22):
            value = zlib.crc32(block, value)
    return value


def flush(path: Path) -> None:
    """Flush a file, or the entries of a folder, to disk; systems that cannot open folders skip the latter."""
    if path.is_dir() and os.name == "nt":
        return
    # Windows can only flush writable files; elsewhere read-only files can be flushed too.
    handle = os.open(path, os.O_RDWR if os.name == "nt" else os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def remove(path: Path) -> None:
    """Remove a folder with its contents, a file, or a link (but not its target), if it exists.

    A folder is first renamed, so that a process that is killed meanwhile leaves no half of it under the old name.
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
