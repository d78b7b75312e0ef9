# SPDX-License-Identifier: Apache-2.0
"""What a WebDataset tar file holds: its samples, and where their parts are.

A sample is a run of files with the same name up to the first dot of the last component: 000001.jpg, 000001.txt,
000001.json. Only the headers are read; of the data nothing is touched until a sample is wanted, and nothing is ever
unpacked to disk or executed.
"""

import itertools
import re
import tarfile
from pathlib import Path
from typing import NamedTuple

from ..images import MAX_FILE_BYTES, UnusableSampleError

_BRACES = re.compile(r"\{([^{}]*)\}")
_RANGE = re.compile(r"(\d+)\.\.(\d+)")


class Part(NamedTuple):
    """One file of a sample: what follows the first dot of its name (lower case), and its bytes in the tar file."""

    suffix: str
    offset: int
    size: int


class TarSample(NamedTuple):
    """A sample of a shard.

    Attributes:
        path: the local tar file.
        shard: how messages call it.
        key: the common name of its parts.
        parts: its files, in their order.
    """

    path: str
    shard: str
    key: str
    parts: tuple[Part, ...]

    @property
    def name(self) -> str:
        """How a message calls the sample."""
        return f"{self.shard}:{self.key}"

    def find(self, *suffixes: str) -> Part | None:
        """The first part with one of the suffixes, in the order of these."""
        return next((part for suffix in suffixes for part in self.parts if part.suffix == suffix), None)

    def read(self, part: Part) -> bytes:
        """The bytes of one part.

        Raises:
            UnusableSampleError: if they are too many, or the tar file has become shorter or unreadable.
        """
        if part.size > MAX_FILE_BYTES:
            raise UnusableSampleError(f".{part.suffix} is larger than {MAX_FILE_BYTES >> 20} MiB")
        try:
            with open(self.path, "rb") as file:
                file.seek(part.offset)
                content = file.read(part.size)
        except OSError as error:
            raise UnusableSampleError(f"its tar file cannot be read ({error})") from error
        if len(content) < part.size:
            raise UnusableSampleError(f".{part.suffix} is cut short")
        return content


class TarIndex(NamedTuple):
    """The complete samples of the tar file at `path`, and what is wrong with it."""

    path: str
    samples: list[TarSample]
    problem: str | None = None


def index_tar(path: str | Path, shard: str | None = None) -> TarIndex:
    """List the samples of an uncompressed tar file.

    A file that ends in the middle of something keeps the samples before it. What was cut off cannot be known: it
    counts as one problem, whatever its size.

    Args:
        path: the local file.
        shard: its name in messages; by default the path.
    """
    shard = shard or str(path)
    files: list[tuple[str, Part]] = []
    problem = None
    try:
        with tarfile.open(path, "r:") as tar:
            while (member := tar.next()) is not None:
                tar.members = []  # type: ignore[attr-defined]  # or the tar file's own list would keep every header
                if member.isreg() and (name := _split_name(member.name)):
                    files.append((name[0], Part(name[1], member.offset_data, member.size)))
    except tarfile.ReadError as error:
        problem = f"it is no tar file ({error})" if not files else f"it is truncated ({error})"
    except (OSError, tarfile.TarError, ValueError, EOFError) as error:
        problem = f"it is broken ({error})"
    samples = [
        TarSample(str(path), shard, key, tuple(part for _, part in group))
        for key, group in itertools.groupby(files, key=lambda file: file[0])
    ]
    if problem is not None and samples:
        samples.pop()  # the sample that the break is in, or may be in
        problem += f"; {len(samples)} samples before the break are used, the rest is lost"
    return TarIndex(str(path), samples, problem)


def _split_name(name: str) -> tuple[str, str] | None:
    folder, _, last = name.rpartition("/")
    stem, dot, suffix = last.partition(".")
    if not stem or not dot:
        return None
    return f"{folder}/{stem}" if folder else stem, suffix.lower()


def expand_braces(pattern: str) -> list[str]:
    """All names that a pattern stands for: "{000..123}" counts with leading zeros, "{a,b}" lists.

    Raises:
        ValueError: if braces hold something else.
    """
    match = _BRACES.search(pattern)
    if match is None:
        if "{" in pattern or "}" in pattern:
            raise ValueError(f"The shard pattern {pattern!r} has a brace without its partner.")
        return [pattern]
    before, after = pattern[: match.start()], pattern[match.end() :]
    if found := _RANGE.fullmatch(match[1]):
        first, last = found[1], found[2]
        if int(first) > int(last):
            raise ValueError(f"The shard pattern {pattern!r} counts down; write {{{last}..{first}}}.")
        width = len(first) if first.startswith("0") else 0
        choices = [f"{number:0{width}d}" for number in range(int(first), int(last) + 1)]
    elif "," in match[1]:
        choices = match[1].split(",")
    else:
        raise ValueError(f"The shard pattern {pattern!r} needs {{first..last}} or {{one,another}} in its braces.")
    return [before + choice + rest for choice in choices for rest in expand_braces(after)]
