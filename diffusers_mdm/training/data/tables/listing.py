# SPDX-License-Identifier: Apache-2.0
"""The files of a data folder that may be read, and which of its splits each belongs to.

**Splits of pictures and clips are folders.** If all of them lie in folders named train, validation and test (or
training, valid, val, dev, testing, eval, evaluation) directly in the data folder, with train among these, they are its
splits. In every other case all of them are training data, whatever files and folders are called: a class named "train"
is a class.
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
"""Names of files that are not used, by the reason."""


class Listing(NamedTuple):
    """What a folder holds.

    Attributes:
        folder: the folder, without links in its path.
        files: names of regular files relative to it, with "/" between folders, in their order.
        left_out: what is there and must not be read.
    """

    folder: Path
    files: list[str]
    left_out: LeftOut


def list_folder(folder: Path) -> Listing:
    """List a folder with all folders in it; hidden ones (`.name`, `__name__`) are passed over.

    Links are followed to files inside the folder and nowhere else.
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
    """Why an entry of the folder must not be read."""
    try:
        str(path).encode("utf-8")
        mode = path.lstat().st_mode
        if stat.S_ISLNK(mode):  # anything else lies where it seems to
            found = path.resolve(strict=True)
            if not allowed.holds(found):
                return "links that lead out of the folder (copy the files into it)"
            mode = found.stat().st_mode
    except UnicodeEncodeError:
        return "their names are no UTF-8"
    except (OSError, RuntimeError):
        return "links that lead nowhere"
    return None if is_folder or stat.S_ISREG(mode) else "no regular files, but pipes or devices"


def splits_by_folder(names: Iterable[str], where: str) -> dict[str, list[str]]:
    """The splits of pictures or clips, by the rule at the top of this file.

    Args:
        names: of files relative to the data folder.
        where: how a message calls the data folder.

    Raises:
        ValueError: if there are split folders and pictures beside them, so that either meaning is possible.
    """
    names = list(names)
    tops = {name: name.partition("/")[0] if "/" in name else "" for name in names}
    found = {SPLIT_WORDS.get(top.lower(), "") for top in tops.values()}
    if TRAIN not in found or found == {TRAIN, ""}:
        return {TRAIN: names}
    if "" in found:
        beside = next(name for name in names if tops[name].lower() not in SPLIT_WORDS)
        raise ValueError(
            f"{where} has folders for splits ({', '.join(sorted(found - {''}))}) and others beside them, such as "
            f"{beside}. If they are splits, move what is beside them into one of them; if they are classes, move all "
            "folders into one that is called train."
        )
    splits: dict[str, list[str]] = {split: [] for split in (TRAIN, "validation", "test") if split in found}
    for name in names:
        splits[SPLIT_WORDS[tops[name].lower()]].append(name)
    return splits


def has_split_folders(splits: dict[str, list[str]]) -> bool:
    """Whether the first folder in the names of `splits_by_folder` is that of the split."""
    return all(SPLIT_WORDS.get(name.partition("/")[0].lower()) == TRAIN and "/" in name for name in splits[TRAIN])
