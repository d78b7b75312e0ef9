# SPDX-License-Identifier: Apache-2.0
"""Putting what a run has made into its output folder, which holds other things as well: all of it, or nothing.

The files are written into a folder of their own, which gets a name when it is complete. Only then are its entries
moved up, one after the other, and those that they replace out of the way. The index of a pipeline leaves first and
arrives last, so that nobody loads one half of the old pipeline with one half of the new one. Whatever is interrupted
in between is completed by `finish_moving`, at the next start.
"""

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

from .complete_folders import MANIFEST, complete_folder, flush, remove

INDEX_FILE = "model_index.json"
COMPLETE = ".finished-files"  # complete, and on the way up
_REPLACED = ".replaced"  # inside it: what its entries have replaced


@contextlib.contextmanager
def finished_files(folder: Path) -> Iterator[Path]:
    """Give a folder to write into, whose entries replace those of `folder` when the block ends.

    A block that fails changes nothing.
    """
    finish_moving(folder)
    with complete_folder(folder / COMPLETE) as beside:
        yield beside
    finish_moving(folder)


def finish_moving(folder: Path) -> None:
    """Move what is complete to its place; does nothing where nothing is on the way."""
    complete = folder / COMPLETE
    if not complete.is_dir():
        return
    replaced = complete / _REPLACED
    replaced.mkdir(exist_ok=True)
    if (complete / INDEX_FILE).exists():
        _move_if_there(folder / INDEX_FILE, replaced / INDEX_FILE)
    names = {path.name for path in complete.iterdir()} - {MANIFEST, _REPLACED}
    for name in sorted(names, key=lambda name: (name == INDEX_FILE, name)):
        _move_if_there(folder / name, replaced / name)
        os.replace(complete / name, folder / name)
    flush(folder)
    remove(complete)


def _move_if_there(path: Path, target: Path) -> None:
    if os.path.lexists(path):
        remove(target)
        os.replace(path, target)
