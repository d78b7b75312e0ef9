# SPDX-License-Identifier: Apache-2.0
"""Safe reading of the local files that a data set names: only regular files inside its folder, of limited size.

A data set may come from anyone. A path or link in it may lead to a private file, to an endless device, or to a pipe
that blocks; none of these is ever opened.
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
    """Read a regular file of at most `limit` bytes.

    Raises:
        UnusableSampleError: if it is missing, not a regular file, larger, or cannot be read.
    """
    check_file(path, limit)
    try:
        with path.open("rb") as file:
            content = file.read(limit + 1)
    except OSError as error:
        raise UnusableSampleError(f"its file cannot be read ({error.strerror or error})") from error
    if len(content) > limit:  # the file has grown meanwhile
        raise UnusableSampleError(_too_large(limit))
    return content


def check_file(path: Path, limit: int) -> None:
    """Check that a path is a regular file of at most `limit` bytes; raises the errors of `read_file`."""
    try:
        status = path.stat()
    except (OSError, ValueError) as error:  # ValueError: the name contains NUL
        raise UnusableSampleError(f"its file {path.name!r} cannot be found ({error})") from error
    if not stat.S_ISREG(status.st_mode):
        raise UnusableSampleError(f"{path.name!r} is not a regular file, but a {_kind(status.st_mode)}")
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
    """The folders in which the files of a data set may be.

    Attributes:
        base: the folder to which relative paths refer; None if they are not allowed.
        folders: folders that may contain the files, after resolving links.
    """

    base: Path | None
    folders: tuple[Path, ...]

    @classmethod
    def of_folder(cls, folder: Path) -> "AllowedFolders":
        """Allow a local folder; for one in the cache of the Hub, also the folder that its links point to."""
        root = folder.resolve()
        cached = _hub_repository_of(root)
        return cls(root, (root,) if cached is None else (root, cached))

    @classmethod
    def of_hub(cls) -> "AllowedFolders":
        """Allow only what `datasets` and huggingface_hub download and unpack."""
        config = datasets.config
        caches = (
            config.HF_DATASETS_CACHE,
            config.DOWNLOADED_DATASETS_PATH,
            config.EXTRACTED_DATASETS_PATH,
            HF_HUB_CACHE,
        )
        return cls(None, tuple(Path(cache).resolve() for cache in caches))

    def find(self, name: str) -> Path:
        """Return the file or folder that a data set names, with links resolved.

        Raises:
            UnusableSampleError: if it is outside the allowed folders, or does not exist.
        """
        path = Path(name)
        if self.base is not None:
            path = self.base / path
        elif not path.is_absolute():
            raise UnusableSampleError(f"its path {name!r} is relative, but the data set has no local folder")
        try:
            found = path.resolve(strict=True)
        except (OSError, RuntimeError, ValueError) as error:  # RuntimeError: a cycle of links
            raise UnusableSampleError(f"its file {name!r} cannot be found ({_reason(error)})") from error
        if not self.holds(found):
            raise UnusableSampleError(
                f"its file {name!r} is outside the data set; only files inside it are read: copy it there"
            )
        for entry in _links_in(found):
            self.find(str(entry))
        return found

    def holds(self, resolved: Path) -> bool:
        """Return whether a resolved path is in one of the folders."""
        return any(resolved.is_relative_to(folder) for folder in self.folders)


def _links_in(path: Path) -> Iterator[Path]:
    """Return the links in a folder of frames."""
    if path.is_dir():
        with os.scandir(path) as entries:
            yield from (Path(entry.path) for entry in entries if entry.is_symlink() and not entry.is_dir())


def _hub_repository_of(folder: Path) -> Path | None:
    """Return the repository in the cache of the Hub to which a folder belongs, if any."""
    cache = Path(HF_HUB_CACHE).resolve()
    if not folder.is_relative_to(cache) or folder == cache:
        return None
    return cache / folder.relative_to(cache).parts[0]


def _reason(error: Exception) -> str:
    return str(getattr(error, "strerror", None) or error)
