# SPDX-License-Identifier: Apache-2.0
"""A lock file that allows only one run at a time in an output folder; a stale lock is taken over."""

import contextlib
import dataclasses
import json
import logging
import os
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import psutil  # type: ignore[import-untyped]

logger = logging.getLogger(__name__)

LOCK_FILE = "run.lock"
# Time to wait for a lock file to get its contents, or for another process to take over the same lock.
SETTLE_SECONDS = 0.5
# If the start times differ by more than this, it is a different process; small differences come from clock changes.
CLOCK_STEP_SECONDS = 60


@dataclasses.dataclass(frozen=True)
class Holder:
    """The process that holds the lock."""

    host: str
    pid: int
    started: float  # seconds since 1970, to distinguish a process from a later one with the same id

    @staticmethod
    def here() -> "Holder":
        """Return this process."""
        return Holder(socket.gethostname(), os.getpid(), psutil.Process().create_time())

    def is_gone(self) -> bool:
        """Return whether the process has certainly ended; of processes on other machines that is unknown."""
        if self.host != socket.gethostname():
            return False
        try:
            return bool(abs(psutil.Process(self.pid).create_time() - self.started) > CLOCK_STEP_SECONDS)
        except psutil.NoSuchProcess:
            return True
        except psutil.AccessDenied:
            return False


@contextlib.contextmanager
def only_run_in(output_dir: Path) -> Iterator[None]:
    """Hold the lock of an output folder inside the block; on the main process of a run.

    Raises:
        ValueError: another run holds it; the message names that run, and the file to remove if it no longer exists.
    """
    is_new = not output_dir.exists()
    output_dir.mkdir(parents=True, exist_ok=True)
    path, own = output_dir / LOCK_FILE, Holder.here()
    _take(path, own)
    try:
        yield
    finally:
        if _holder(path) == own:
            path.unlink(missing_ok=True)
        if is_new:
            with contextlib.suppress(OSError):  # something was written
                output_dir.rmdir()


def _take(path: Path, own: Holder) -> None:
    contents = json.dumps(dataclasses.asdict(own))
    try:
        # Mode "x" fails if the file exists, atomically on every system.
        with path.open("x", encoding="utf-8") as file:
            file.write(contents)
        return
    except FileExistsError:
        holder = _settled_holder(path)
    if holder is None or not holder.is_gone():
        raise ValueError(_refusal(path, holder))
    # If several processes take over the same lock, the last one to write has it.
    beside = path.with_name(f"{path.name}.{own.pid}-{threading.get_ident()}")
    beside.write_text(contents, encoding="utf-8")
    os.replace(beside, path)
    time.sleep(SETTLE_SECONDS)
    if (found := _holder(path)) != own:
        raise ValueError(_refusal(path, found))
    logger.warning(
        "The previous run in %s (process %d) ended without removing %s; the lock is taken over.",
        path.parent,
        holder.pid,
        path.name,
    )


def _refusal(path: Path, holder: Holder | None) -> str:
    who = "another run" if holder is None else f"another run (process {holder.pid} on {holder.host})"
    return (
        f"{path.parent} is in use by {who}, and two runs in one folder would overwrite each other's files. Wait for "
        f"it or stop it, or choose another --output_dir; if that run no longer exists, remove {path}."
    )


def _settled_holder(path: Path) -> Holder | None:
    """Return the holder of the lock; waits a moment for a lock file that has no contents yet."""
    if (holder := _holder(path)) is None:
        time.sleep(SETTLE_SECONDS)
        holder = _holder(path)
    return holder


def _holder(path: Path) -> Holder | None:
    """Return the holder named in the lock file; None if it cannot be read."""
    try:
        fields = json.loads(path.read_text(encoding="utf-8"))
        return Holder(str(fields["host"]), int(fields["pid"]), float(fields["started"]))
    except (OSError, ValueError, TypeError, KeyError):
        return None
