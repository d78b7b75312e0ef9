# SPDX-License-Identifier: Apache-2.0
"""Index of a WebDataset tar file: its samples, and where their parts are.

A sample is a sequence of files whose names are equal up to the first dot of the last component: 000001.jpg,
000001.txt, 000001.json. Only headers are read; data is not touched until a sample is needed, and nothing is ever
unpacked to disk or executed.
"""

import itertools
import struct
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple, cast

from ..images import MAX_FILE_BYTES
from ..skip_budget import UnusableSampleError
from ..text.captions import clean_caption

MAX_TEXT_BYTES = 2**20  # limit of a caption file, or of the .json of a sample
MAX_HEADER_BYTES = 2**20  # extended tar headers can have any size
MAX_FILES = 20_000_000  # limit of files in one tar file
# What tarfile raises on malformed headers, besides its own errors.
_HEADER_ERRORS = (
    OSError,
    EOFError,
    ValueError,
    TypeError,
    LookupError,
    ArithmeticError,
    RecursionError,
    struct.error,
)


class Part(NamedTuple):
    """One file of a sample: what follows the first dot of its name (lower case), and its place in the tar file."""

    suffix: str
    offset: int
    size: int


class TarSample(NamedTuple):
    """A sample of a shard.

    Attributes:
        path: the local tar file.
        shard: name of the shard in messages.
        key: the common name of its parts.
        parts: its files, in order.
    """

    path: str
    shard: str
    key: str
    parts: tuple[Part, ...]

    @property
    def name(self) -> str:
        """Return the name of the sample for messages."""
        return f"{self.shard}:{clean_caption(self.key)}"

    def find(self, *suffixes: str) -> Part | None:
        """Return the first part with one of the suffixes, in the order of the suffixes."""
        return next((part for suffix in suffixes for part in self.parts if part.suffix == suffix), None)

    def read(self, part: Part, limit: int = MAX_FILE_BYTES) -> bytes:
        """Read one part.

        Args:
            part: one of `parts`.
            limit: maximum number of bytes.

        Raises:
            UnusableSampleError: if the part is larger, or the tar file has become shorter or unreadable.
        """
        if not 0 <= part.size <= limit:
            raise UnusableSampleError(f".{part.suffix} has {part.size:,} bytes, expected at most {limit >> 20} MiB")
        try:
            with open(self.path, "rb") as file:
                file.seek(part.offset)
                content = file.read(part.size)
        except (OSError, OverflowError) as error:
            raise UnusableSampleError(f"its tar file cannot be read ({error})") from error
        if len(content) < part.size:
            raise UnusableSampleError(f".{part.suffix} is truncated")
        return content


class TarIndex(NamedTuple):
    """The complete samples of the tar file at `path`, and what is wrong with the file."""

    path: str
    samples: list[TarSample]
    problem: str | None = None


def index_tar(path: str | Path, shard: str | None = None) -> TarIndex:
    """List the samples of an uncompressed tar file.

    Of a truncated file the samples before the end are kept. How many are missing is unknown, so this counts as one
    problem.

    Args:
        path: the local file.
        shard: its name in messages; by default the path.
    """
    shard = shard or str(path)
    files: list[tuple[str, Part]] = []
    problem = None
    try:
        for member in _members(path):
            if member.isreg() and (name := _split_name(member.name)):
                files.append((name[0], Part(name[1], member.offset_data, member.size)))
    except tarfile.ReadError as error:
        problem = f"it is not a tar file ({error})" if not files else f"it is truncated ({error})"
    except (tarfile.TarError, *_HEADER_ERRORS) as error:
        problem = f"it is broken ({str(error)[:200] or type(error).__name__})"
    samples = [
        TarSample(str(path), shard, key, tuple(part for _, part in group))
        for key, group in itertools.groupby(files, key=lambda file: file[0])
    ]
    if problem is not None and samples:
        samples.pop()  # the sample in which the damage is, or may be
        problem += f"; {len(samples)} samples before the damage are used, the rest is lost"
    return TarIndex(str(path), samples, problem)


def _members(path: str | Path) -> Iterator[tarfile.TarInfo]:
    """Yield the headers of a tar file; raises tarfile's errors and `_HEADER_ERRORS`."""
    with open(path, "rb") as file, tarfile.open(fileobj=cast(Any, HeaderFile(file)), mode="r:") as tar:
        # Without members, Python 3.10 would look for the next one before the file's start.
        if tar.firstmember is None:  # type: ignore[attr-defined]
            return
        place = -1
        for _ in range(MAX_FILES):
            member = tar.next()
            if member is None:
                return
            tar.members = []  # type: ignore[attr-defined]  # otherwise the tar file's own list would keep every header
            # A header can claim any size, and with a negative one reading would go back and never end.
            if member.size < 0 or member.offset_data <= place:
                raise tarfile.HeaderError(f"{clean_caption(member.name)!r} claims a size of {member.size} bytes")
            place = member.offset_data
            yield member
        raise tarfile.HeaderError(f"it has more than {MAX_FILES:,} files")


class HeaderFile:
    """A file object for reading tar headers that refuses headers longer than `MAX_HEADER_BYTES`.

    Args:
        file: a seekable file that is open for reading.
    """

    def __init__(self, file: BinaryIO):
        self.file = file
        self.seek, self.tell, self.close = file.seek, file.tell, file.close

    def read(self, size: int = -1) -> bytes:
        """Read up to `size` bytes.

        Raises:
            tarfile.HeaderError: if `size` is more than `MAX_HEADER_BYTES`.
        """
        if not 0 <= size <= MAX_HEADER_BYTES:
            raise tarfile.HeaderError(f"a header has {size:,} bytes, expected at most {MAX_HEADER_BYTES:,}")
        return self.file.read(size)


def _split_name(name: str) -> tuple[str, str] | None:
    folder, _, last = name.rpartition("/")
    stem, dot, suffix = last.partition(".")
    if not stem or not dot:
        return None
    return f"{folder}/{stem}" if folder else stem, suffix.lower()
