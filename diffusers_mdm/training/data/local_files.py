# SPDX-License-Identifier: Apache-2.0
"""Local files that a data set names, read only if they are its own: regular, inside its folder, and not too large.

A data set may come from anyone. A path in it, or a link, may lead to a private file, to a device that never ends or to
a pipe that never begins; none of these is ever opened.
"""

import os
import stat
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import datasets
from huggingface_hub.constants import HF_HUB_CACHE

from .skip_budget import UnusableSampleError


def read_file(path: Path, limit: int) -> bytes:
    """The content of a regular file of at most `limit` bytes.

    Raises:
        UnusableSampleError: if it is missing, no regular file, larger, or cannot be read.
    """
    check_file(path, limit)
    try:
        with path.open("rb") as file:
            content = file.read(limit + 1)
    except OSError as error:
        raise UnusableSampleError(f"its file cannot be read ({error.strerror or error})") from error
    if len(content) > limit:  # it has grown
        raise UnusableSampleError(_too_large(limit))
    return content


def check_file(path: Path, limit: int) -> None:
    """Refuse to open what is no regular file of at most `limit` bytes; errors as those of `read_file`."""
    try:
        status = path.stat()
    except (OSError, ValueError) as error:  # ValueError: a NUL in the name
        raise UnusableSampleError(f"its file {path.name!r} cannot be found ({error})") from error
    if not stat.S_ISREG(status.st_mode):
        raise UnusableSampleError(f"{path.name!r} is no regular file, but a {_kind(status.st_mode)}")
    if status.st_size > limit:
        raise UnusableSampleError(_too_large(limit))


def _too_large(limit: int) -> str:
    size = f"{limit >> 20} MiB" if limit >= 2**20 else f"{limit >> 10} KiB"
    return f"the file is larger than {size}"


def _kind(mode: int) -> str:
    kinds = {stat.S_ISDIR: "folder", stat.S_ISFIFO: "pipe", stat.S_ISCHR: "device", stat.S_ISBLK: "device"}
    return next((name for is_kind, name in kinds.items() if is_kind(mode)), "special file")


@dataclass(frozen=True)
class AllowedFolders:
    """Where the files of a data set may be.

    Attributes:
        base: the folder that relative paths begin at; None if there are none.
        folders: files may lie in these, all links followed.
    """

    base: Path | None
    folders: tuple[Path, ...]

    @classmethod
    def of_folder(cls, folder: Path) -> "AllowedFolders":
        """A folder of this machine; one in the cache of the Hub consists of links to its neighbours there."""
        root = folder.resolve()
        cached = _hub_repository_of(root)
        return cls(root, (root,) if cached is None else (root, cached))

    @classmethod
    def of_hub(cls) -> "AllowedFolders":
        """What `datasets` and the Hub's client download and unpack, and nothing else."""
        config = datasets.config
        caches = (
            config.HF_DATASETS_CACHE,
            config.DOWNLOADED_DATASETS_PATH,
            config.EXTRACTED_DATASETS_PATH,
            HF_HUB_CACHE,
        )
        return cls(None, tuple(Path(cache).resolve() for cache in caches))

    def find(self, name: str) -> Path:
        """The file or folder that a data set names, all links followed.

        Raises:
            UnusableSampleError: if it lies elsewhere, or is not there.
        """
        path = Path(name)
        if self.base is not None:
            path = self.base / path
        elif not path.is_absolute():
            raise UnusableSampleError(f"its path {name!r} is relative, and the data set has no folder here")
        try:
            found = path.resolve(strict=True)
        except (OSError, RuntimeError, ValueError) as error:  # RuntimeError: links in a circle
            raise UnusableSampleError(f"its file {name!r} cannot be found ({_reason(error)})") from error
        if not self.holds(found):
            raise UnusableSampleError(
                f"its file {name!r} lies outside of the data set; only files inside it are read: copy it there"
            )
        for entry in _links_in(found):
            self.find(str(entry))
        return found

    def holds(self, resolved: Path) -> bool:
        """Whether a path without links lies in one of the folders."""
        return any(resolved.is_relative_to(folder) for folder in self.folders)


def _links_in(path: Path) -> Iterator[Path]:
    """The links in a folder of frames."""
    if path.is_dir():
        with os.scandir(path) as entries:
            yield from (Path(entry.path) for entry in entries if entry.is_symlink() and not entry.is_dir())


def _hub_repository_of(folder: Path) -> Path | None:
    """The repository in the cache of the Hub that a folder belongs to, if it is one of these."""
    cache = Path(HF_HUB_CACHE).resolve()
    if not folder.is_relative_to(cache) or folder == cache:
        return None
    return cache / folder.relative_to(cache).parts[0]


def _reason(error: Exception) -> str:
    return str(getattr(error, "strerror", None) or error)
