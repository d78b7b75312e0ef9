# SPDX-License-Identifier: Apache-2.0
"""Shards as local files: those that are local as they are, those behind a URL while they are needed."""

import collections
import contextlib
import logging
import os
import tempfile
import time
import urllib.request
from collections.abc import Sequence
from pathlib import Path

import fsspec

from .index import TarIndex, index_tar
from .names import expand_patterns

logger = logging.getLogger(__name__)

TRIES = 4
FIRST_PAUSE_SECONDS = 1.0
TIMEOUT_SECONDS = 60.0
MAX_SHARD_BYTES = 2**36  # 64 GiB; a server that sends more has no shard, or no end


def list_shards(patterns: Sequence[str]) -> list[str]:
    """The shards that brace patterns name, paths or URLs.

    Raises:
        ValueError: if a local one does not exist, one is named twice, there is none, or there are far too many.
    """
    shards = expand_patterns(patterns)
    if not shards:
        raise ValueError("`data.shards` is empty; name at least one tar file.")
    if len(set(shards)) < len(shards):
        twice = collections.Counter(shards).most_common(1)[0][0]
        raise ValueError(f"The shard {twice} is named twice.")
    missing = [shard for shard in shards if not is_remote(shard) and not Path(shard).is_file()]
    if missing:
        raise ValueError(
            f"{len(missing)} of {len(shards)} shards do not exist or are no regular files, such as "
            f"{', '.join(missing[:3])}. Check the pattern, or run where they are."
        )
    return shards


def describe_shards(patterns: Sequence[str], held_out: Sequence[str]) -> list[str]:
    """How many shards there are to train on and to measure on, a line each; whether they exist is counted, too.

    Raises:
        ValueError: if a pattern makes no sense.
    """
    lines = []
    for named, purpose in ((patterns, "to train on"), (held_out, "held out")):
        shards = expand_patterns(named)
        missing = sum(not is_remote(shard) and not Path(shard).is_file() for shard in shards)
        lacking = f", of which {missing:,} are not on this machine" if missing else ""
        if shards:
            lines.append(f"{len(shards):,} shards {purpose}{lacking}; samples are counted as they are read")
    return lines


def is_remote(shard: str) -> bool:
    """Whether a shard is named by a URL."""
    return "://" in shard


class ShardFiles:
    """Local tar files of shards, and their contents.

    A shard behind a URL (https, or what fsspec opens: hf, s3 …) is fetched as a whole into a temporary folder. It is
    removed when it was retired and `lag` more samples were counted: by then no sample of it is on its way.
    """

    def __init__(self, lag: int = 0):
        self.lag = lag
        self._indices: dict[str, TarIndex] = {}
        self._retired: collections.deque[tuple[str, int]] = collections.deque()
        self._folder: tempfile.TemporaryDirectory[str] | None = None
        self._number = 0

    def index(self, shard: str) -> TarIndex:
        """The samples of a shard, fetched if need be; one call at a time."""
        if not is_remote(shard):
            return index_tar(shard)
        if self._folder is None:
            self._folder = tempfile.TemporaryDirectory(prefix="shards-")
        self._number += 1  # an epoch may begin anew before the shard's last file is removed
        path = str(Path(self._folder.name) / f"{self._number:06d}.tar")
        fetch(shard, path)
        return index_tar(path, shard)

    def retire(self, path: str, count: int) -> None:
        """Say that sample number `count` of the stream was the last one of a file, and remove what is out of use."""
        if self._folder is not None and path.startswith(self._folder.name):
            self._retired.append((path, count))
        while self._retired and self._retired[0][1] + self.lag < count:
            os.unlink(self._retired.popleft()[0])


def fetch(url: str, path: str) -> None:
    """Copy what is behind `url` to `path`, with some patience.

    Raises:
        OSError: if it cannot be had now.
        ValueError: if it is not there at all.
    """
    pause = FIRST_PAUSE_SECONDS
    for attempt in range(1, TRIES + 1):
        try:
            _copy(url, path)
            return
        except ImportError as error:
            raise ValueError(f"{url} needs another package: {error}") from error
        except OSError as error:
            if isinstance(error, FileNotFoundError) or getattr(error, "code", None) in (403, 404, 410):
                raise ValueError(f"There is no shard at {url} ({error}).") from error
            if attempt == TRIES:
                raise OSError(f"The shard {url} cannot be fetched ({error}); repeat the command to go on.") from error
            logger.warning("%s could not be fetched (%s); trying again in %.0f s.", url, error, pause)
            time.sleep(pause)
            pause *= 4


def _copy(url: str, path: str) -> None:
    expected = None
    with contextlib.ExitStack() as stack:
        if url.startswith(("http://", "https://")):
            source = stack.enter_context(urllib.request.urlopen(url, timeout=TIMEOUT_SECONDS))
            expected = source.headers["Content-Length"]
        else:
            source = stack.enter_context(fsspec.open(url, "rb"))
        target = stack.enter_context(open(path, "wb"))
        size = 0
        while piece := source.read(2**20):
            size += len(piece)
            if size > MAX_SHARD_BYTES:
                raise ValueError(f"{url} has more than {MAX_SHARD_BYTES >> 30} GiB; cut it into smaller shards.")
            target.write(piece)
    if expected is not None and str(size) != expected.strip():
        raise OSError(f"got {size} of {expected} bytes")
