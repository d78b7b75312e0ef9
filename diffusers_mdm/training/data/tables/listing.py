# SPDX-License-Identifier: Apache-2.0
"""The readable files of a data folder, and the split that each belongs to.

**Splits of images and clips are folders.** If all of them are in folders named train, validation and test (or
training, valid, val, dev, testing, eval, evaluation) directly in the data folder, and train is among these, the
folders are splits. In all other cases everything is training data, whatever files and folders are called: a class can
be named "train".
"""

import os
import stat
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

from ..local_files import AllowedFolders

TRAIN = "train"
SPLIT_WORDS = {
    **dict.fromkeys(("train", "training"), TRAIN),
    **dict.fromkeys(("validation", "valid", "val", "dev"), "validation"),
    **dict.fromkeys(("test", "testing", "eval", "evaluation"), "test"),
}
LeftOut = dict[str, list[str]]
"""Names of files that are not used, by reason."""


class Listing(NamedTuple):
    """The contents of a folder.

    Attributes:
        folder: the folder, as a path without links.
        files: sorted names of regular files relative to it, with "/" between folders.
        left_out: files that must not be read, by reason.
    """

    folder: Path
    files: list[str]
    left_out: LeftOut


def list_folder(folder: Path) -> Listing:
    """List a folder recursively; hidden files and folders (`.name`, `__name__`) are ignored.

    Links are followed only to files inside the folder.
    """
    allowed = AllowedFolders.of_folder(folder)
    root = folder.resolve()
    files: list[str] = []
    left_out: LeftOut = {}
    for parent, folders, names in os.walk(root):
        inside = Path(parent).relative_to(root)
        folders[:] = sorted(name for name in folders if not _is_hidden(name))
        for name in (*folders, *names):
            relative = (inside / name).as_posix()
            reason = None if _is_hidden(name) else _refusal(Path(parent) / name, allowed, name in folders)
            if reason:
                left_out.setdefault(reason, []).append(relative)
            elif name not in folders and not _is_hidden(name):
                files.append(relative)
    return Listing(root, sorted(files), left_out)


def _is_hidden(name: str) -> bool:
    return name.startswith((".", "__"))


def _refusal(path: Path, allowed: AllowedFolders, is_folder: bool) -> str | None:
    """Return why an entry of the folder must not be read."""
    try:
        str(path).encode("utf-8")
        mode = path.lstat().st_mode
        if stat.S_ISLNK(mode):  # anything else is not a link
            found = path.resolve(strict=True)
            if not allowed.holds(found):
                return "links that lead out of the folder (copy the files into it)"
            mode = found.stat().st_mode
    except UnicodeEncodeError:
        return "their names are not UTF-8"
    except (OSError, RuntimeError):
        return "links that lead nowhere"
    return None if is_folder or stat.S_ISREG(mode) else "not regular files, but pipes or devices"


def splits_by_folder(names: Iterable[str], where: str) -> dict[str, list[str]]:
    """Assign images or clips to splits, by the rule at the top of this file.

    Args:
        names: names of files relative to the data folder.
        where: name of the data folder in messages.

    Raises:
        ValueError: if there are split folders and other folders with images, so that both readings are possible.
    """
    names = list(names)
    tops = {name: name.partition("/")[0] if "/" in name else "" for name in names}
    found = {SPLIT_WORDS.get(top.lower(), "") for top in tops.values()}
    if TRAIN not in found or found == {TRAIN, ""}:
        return {TRAIN: names}
    if "" in found:
        beside = next(name for name in names if tops[name].lower() not in SPLIT_WORDS)
        raise ValueError(
            f"{where} has folders with the names of splits ({', '.join(sorted(found - {''}))}) and others beside "
            f"them, such as {beside}. If they are splits, move the others into one of them; if they are classes, "
            f"move all folders into one folder named train."
        )
    splits: dict[str, list[str]] = {split: [] for split in (TRAIN, "validation", "test") if split in found}
    for name in names:
        splits[SPLIT_WORDS[tops[name].lower()]].append(name)
    return splits


def has_split_folders(splits: dict[str, list[str]]) -> bool:
    """Return whether the splits of `splits_by_folder` are folders, which are then the first part of each name."""
    return all(SPLIT_WORDS.get(name.partition("/")[0].lower()) == TRAIN and "/" in name for name in splits[TRAIN])
