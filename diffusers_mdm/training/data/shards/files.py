# SPDX-License-Identifier: Apache-2.0
"""Access to shards as local files: local ones directly, remote ones downloaded while they are needed."""

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
MAX_SHARD_BYTES = 2**36  # 64 GiB; a server that sends more does not send a shard


def list_shards(patterns: Sequence[str]) -> list[str]:
    """Expand brace patterns to the names of shards, paths or URLs.

    Raises:
        ValueError: if a local shard does not exist, one is named twice, there is none, or there are far too many.
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
            f"{len(missing)} of {len(shards)} shards do not exist or are not regular files, such as "
            f"{', '.join(missing[:3])}. Check the pattern, or run on a machine that has them."
        )
    return shards


def describe_shards(patterns: Sequence[str], held_out: Sequence[str]) -> list[str]:
    """Describe in one line each how many training and held-out shards there are, and how many are missing.

    Raises:
        ValueError: if a pattern is invalid.
    """
    lines = []
    for named, purpose in ((patterns, "for training"), (held_out, "held out")):
        shards = expand_patterns(named)
        missing = sum(not is_remote(shard) and not Path(shard).is_file() for shard in shards)
        lacking = f", of which {missing:,} are not on this machine" if missing else ""
        if shards:
            lines.append(f"{len(shards):,} shards {purpose}{lacking}; samples are counted as they are read")
    return lines


def is_remote(shard: str) -> bool:
    """Return whether a shard is named by a URL."""
    return "://" in shard


class ShardFiles:
    """The local tar files of shards, and their indexes.

    A shard with a URL (https, or anything that fsspec opens: hf, s3 …) is downloaded completely into a temporary
    folder. It is deleted after it was retired and `lag` more samples were counted, when none of its samples can still
    be in use.
    """

    def __init__(self, lag: int = 0):
        self.lag = lag
        self._indices: dict[str, TarIndex] = {}
        self._retired: collections.deque[tuple[str, int]] = collections.deque()
        self._folder: tempfile.TemporaryDirectory[str] | None = None
        self._number = 0

    def index(self, shard: str) -> TarIndex:
        """Return the index of a shard, which is downloaded if necessary; not thread-safe."""
        if not is_remote(shard):
            return index_tar(shard)
        if self._folder is None:
            self._folder = tempfile.TemporaryDirectory(prefix="shards-")
        self._number += 1  # a new epoch may begin before the shard's previous file is deleted
        path = str(Path(self._folder.name) / f"{self._number:06d}.tar")
        fetch(shard, path)
        return index_tar(path, shard)

    def retire(self, path: str, count: int) -> None:
        """Record that sample number `count` of the stream was the last one of a file, and delete files no longer in
        use.
        """
        if self._folder is not None and path.startswith(self._folder.name):
            self._retired.append((path, count))
        while self._retired and self._retired[0][1] + self.lag < count:
            os.unlink(self._retired.popleft()[0])


def fetch(url: str, path: str) -> None:
    """Download `url` to `path`, with several attempts.

    Raises:
        OSError: if it cannot be downloaded at the moment.
        ValueError: if it does not exist.
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
                raise OSError(
                    f"The shard {url} cannot be downloaded ({error}); repeat the command to continue."
                ) from error
            logger.warning("%s could not be downloaded (%s); trying again in %.0f s.", url, error, pause)
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
                raise ValueError(f"{url} has more than {MAX_SHARD_BYTES >> 30} GiB; split it into smaller shards.")
            target.write(piece)
    if expected is not None and str(size) != expected.strip():
        raise OSError(f"got {size} of {expected} bytes")
