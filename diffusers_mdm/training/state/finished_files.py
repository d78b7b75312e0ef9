# SPDX-License-Identifier: Apache-2.0
"""Writing the result of a run into its output folder, which also contains other files, completely or not at all.

The files are written into a temporary folder, which is renamed when it is complete. Only then are its entries moved to
the output folder, one after the other, and the ones they replace moved away. The index of a pipeline is removed first
and added last, so that nobody can load half of the old pipeline with half of the new one. If this is interrupted, it
is completed by `finish_moving` at the next start.
"""

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

from .complete_folders import MANIFEST, complete_folder, flush, remove

INDEX_FILE = "model_index.json"
COMPLETE = ".finished-files"  # complete; its entries are being moved
_REPLACED = ".replaced"  # inside it: the entries that were replaced


@contextlib.contextmanager
def finished_files(folder: Path) -> Iterator[Path]:
    """Provide a temporary folder whose entries replace those of `folder` when the block ends.

    If the block fails, nothing is changed.
    """
    finish_moving(folder)
    with complete_folder(folder / COMPLETE) as beside:
        yield beside
    finish_moving(folder)


def finish_moving(folder: Path) -> None:
    """Complete an interrupted move, if there is one."""
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
