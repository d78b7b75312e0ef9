# SPDX-License-Identifier: Apache-2.0
"""Downloads that survive interruptions: a file appears under its name only when it is complete and verified.

What has arrived is kept as `NAME.part`, with the server's description of the file beside it. The next attempt asks for
the rest (HTTP Range, RFC 9110 section 14) on the condition that the file is still the same; a server that ignores such
requests, or has another file now, is read from the start.
"""

from __future__ import annotations

import contextlib
import hashlib
import http.client
import json
import os
import re
import shutil
import ssl
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NoReturn

from filelock import FileLock, Timeout
from tqdm.auto import tqdm  # type: ignore[import-untyped]

from .. import __version__

CHUNK = 2**20
# Of files whose size neither the server nor the caller knows; the largest published checkpoint is far smaller.
MAX_UNKNOWN_SIZE = 32 * 2**30
CONTENT_RANGE = re.compile(r"bytes (\d+)-\d+/(\d+|\*)")


@dataclass(frozen=True)
class Expected:
    """What is known about a file before it is downloaded.

    Attributes:
        size: bytes; None if unknown.
        sha256: checksum in hexadecimal; None if unknown.

    Raises:
        ValueError: the checksum is not one.
    """

    size: int | None = None
    sha256: str | None = None

    def __post_init__(self) -> None:
        if self.sha256 is not None and not re.fullmatch(r"[0-9a-fA-F]{64}", self.sha256):
            raise ValueError(f"{self.sha256!r} is not a SHA-256 checksum, which has 64 hexadecimal digits.")

    def check_size(self, size: int, source: str) -> None:
        """Raise a ValueError if a file has another size."""
        if self.size is not None and size != self.size:
            raise ValueError(f"{source} has {size:,} bytes; expected {self.size:,}. Is it the right file?")

    def check_checksum(self, path: Path, source: str) -> str:
        """Return the SHA-256 checksum of a file.

        Raises:
            ValueError: it is not the expected one.
        """
        found = sha256_of(path)
        if self.sha256 is not None and found != self.sha256.lower():
            raise ValueError(
                f"{source} has the SHA-256 checksum {found}; expected {self.sha256.lower()}. The file is damaged, or "
                "another one; nothing was kept of it."
            )
        return found


@dataclass(frozen=True)
class Limits:
    """When to give up.

    Attributes:
        timeout: seconds without an answer or a byte after which an attempt ends.
        attempts: number of attempts in a row that brought nothing.
        pause: seconds before the second of them, doubled for each further one.
    """

    timeout: float = 30.0
    attempts: int = 5
    pause: float = 1.0


@dataclass(frozen=True)
class Remote:
    """What a server said about a file, to recognise it later.

    Attributes:
        url: the address that was asked for.
        size: bytes of the whole file; None if the server did not say.
        validator: a strong entity tag, or else the date of the last change; None without either.
    """

    url: str
    size: int | None
    validator: str | None


class _Unfinished(Exception):  # noqa: N818  an attempt that may be repeated
    """The connection ended before the file did."""


class _NoDowngrade(urllib.request.HTTPRedirectHandler):
    """Follows redirections to other HTTP addresses, but not from an encrypted one to a plain one."""

    def redirect_request(self, req: Any, fp: Any, code: Any, msg: Any, headers: Any, newurl: str) -> Any:
        old, new = (urllib.parse.urlsplit(url).scheme for url in (req.full_url, newurl))
        if new not in ("http", "https") or (old == "https" and new != "https"):
            raise ValueError(f"{req.full_url} redirects to {newurl}, which is not encrypted; nothing was downloaded.")
        return super().redirect_request(req, fp, code, msg, headers, newurl)


def download(url: str, target: Path, expected: Expected | None = None, limits: Limits | None = None) -> str:
    """Download a file, or complete an earlier attempt.

    Args:
        url: address of the file, http or https.
        target: file to write; if it exists, only its size and checksum are compared.
        expected: size and checksum, if they are known.
        limits: when to give up.

    Returns:
        The SHA-256 checksum of the file.

    Raises:
        ValueError: the server has no such file or another one; or another process downloads it at the moment.
        OSError: the server cannot be reached, or the file cannot be written.
    """
    expected, limits = expected or Expected(), limits or Limits()
    check_address(url)
    target.parent.mkdir(parents=True, exist_ok=True)
    part = target.with_name(f"{target.name}.part")
    with _alone(target):
        if not target.exists():
            _complete(url, part, expected, limits)
            try:
                checksum = expected.check_checksum(part, url)
            except ValueError:
                _forget(part)
                raise
            os.replace(part, target)
            _forget(part)
            return checksum
        expected.check_size(target.stat().st_size, str(target))
        return expected.check_checksum(target, str(target))


def check_address(url: str) -> None:
    """Raise a ValueError unless an address is one of HTTP or HTTPS with a host."""
    try:
        parts = urllib.parse.urlsplit(url)
        is_address = parts.scheme in ("http", "https") and bool(parts.hostname)
    except ValueError:
        is_address = False
    if not is_address:
        raise ValueError(f"{url!r} is not an address that can be downloaded; expected http:// or https:// and a host.")


@contextlib.contextmanager
def _alone(target: Path) -> Iterator[None]:
    """Let only one process at a time write a file."""
    try:
        with FileLock(f"{target}.lock", timeout=0):
            yield
    except Timeout:
        raise ValueError(f"Another process downloads {target} now; wait for it, or choose another place.") from None


def _complete(url: str, part: Path, expected: Expected, limits: Limits) -> None:
    """Bring `part` to its full length, in as many attempts as make progress."""
    in_vain, longest = 0, _length(part)
    while True:
        try:
            return _attempt(url, part, expected, limits.timeout)
        except urllib.error.HTTPError as error:
            if error.code < 500 and error.code not in (408, 429):
                _refuse(url, error)
            reason: Exception = error
        except (OSError, http.client.HTTPException, _Unfinished) as error:
            if isinstance(error, OSError) and not _is_of_the_network(error):
                raise
            reason = error
        # Compared with the longest part so far: a server that cannot continue starts over each time.
        in_vain = 1 if _length(part) > longest else in_vain + 1
        longest = max(longest, _length(part))
        if in_vain >= limits.attempts:
            raise OSError(
                f"{url} could not be downloaded: {reason}. {_length(part):,} bytes have arrived; repeat the command "
                "to continue from there."
            ) from reason
        time.sleep(limits.pause * 2 ** (in_vain - 1))


def _is_of_the_network(error: OSError) -> bool:
    """Return whether an error comes from the connection, and not from the disk."""
    return isinstance(error, (urllib.error.URLError, ConnectionError, TimeoutError, ssl.SSLError))


def _refuse(url: str, error: urllib.error.HTTPError) -> NoReturn:
    raise ValueError(
        f"{url} cannot be downloaded: the server answered {error.code} {error.reason}. Check the address; a mirror is "
        "named by --mirror."
    ) from error


def _attempt(url: str, part: Path, expected: Expected, timeout: float) -> None:
    """Ask for what is missing of `part`, and append it.

    Raises:
        _Unfinished: the answer ended early.
    """
    known, start = _read_remote(part, url), _length(part)
    if known is None:  # nothing tells whether these bytes belong to the file
        start = 0
    elif start and start == known.size:
        return
    request = urllib.request.Request(url, headers=_headers(known, start))
    opener = urllib.request.build_opener(_NoDowngrade())
    try:
        answer = opener.open(request, timeout=timeout)
    except urllib.error.HTTPError as error:
        if error.code != 416 or not start:
            raise
        error.close()
        _start_over(part)  # the file is shorter than what has arrived
    with answer:
        start, size = _place_of(answer, start)
        remote = Remote(url, size, _validator(answer))
        if start and known is not None and remote != known:
            _start_over(part)
        if remote.size is not None:
            expected.check_size(remote.size, url)
            _check_space(part, remote.size - start)
        _check_kind(url, answer)
        if start == 0:
            part.write_bytes(b"")
        _describe_path(part).write_text(json.dumps(asdict(remote)), encoding="utf-8")
        _append(answer, part, start, remote.size if remote.size is not None else expected.size)
    if remote.size is None:
        expected.check_size(_length(part), url)


def _start_over(part: Path) -> NoReturn:
    """Drop what has arrived, which belongs to a file that the server no longer has."""
    _forget(part)
    raise _Unfinished("the file on the server has changed")


def _headers(known: Remote | None, start: int) -> dict[str, str]:
    # Compressed answers could neither be counted nor continued.
    headers = {"User-Agent": f"diffusers-mdm/{__version__}", "Accept-Encoding": "identity"}
    if start and known is not None:
        headers["Range"] = f"bytes={start}-"
        if known.validator is not None:
            headers["If-Range"] = known.validator
    return headers


def _place_of(answer: Any, start: int) -> tuple[int, int | None]:
    """Return where in the file an answer begins, and the size of the whole file; None if the server does not say.

    It begins at `start`, or at 0 if the server sends everything.

    Raises:
        ValueError: the server sends another part than it was asked for.
    """
    length = answer.headers.get("Content-Length") or ""
    if answer.status == 200:
        return 0, int(length) if length.isdecimal() else None
    found = CONTENT_RANGE.fullmatch(answer.headers.get("Content-Range", "").strip())
    if answer.status != 206 or not start or found is None or int(found[1]) != start:
        raise ValueError(f"{answer.url} sends another part of the file than was asked for; try another mirror.")
    return start, int(found[2]) if found[2] != "*" else None


def _validator(answer: Any) -> str | None:
    """Return what identifies the contents of the file: a strong tag (a weak one promises less), or else its date."""
    tag = answer.headers.get("ETag")
    return tag if tag is not None and not tag.startswith("W/") else answer.headers.get("Last-Modified")


def _check_kind(url: str, answer: Any) -> None:
    """Raise a ValueError for a web page, which many servers send instead of an error, and for compressed answers."""
    if answer.headers.get("Content-Encoding", "identity") != "identity":
        raise ValueError(f"{url} is sent compressed, although that was not asked for; try another mirror.")
    if answer.headers.get_content_type() == "text/html":
        raise ValueError(f"{url} is a web page, not a file to download. Check the address.")


def _check_space(part: Path, missing: int) -> None:
    free = shutil.disk_usage(part.parent).free
    if missing > free:
        raise ValueError(f"{part.parent} has {free:,} bytes free; {missing:,} are needed. Choose another place.")


def _append(answer: Any, part: Path, start: int, size: int | None) -> None:
    """Append an answer to `part`, which is `start` bytes long, up to `size` bytes.

    Raises:
        _Unfinished: it ended earlier.
        ValueError: it is longer than expected.
    """
    place, limit = start, MAX_UNKNOWN_SIZE if size is None else size
    with (
        part.open("r+b") as file,
        tqdm(
            total=size,
            initial=start,
            desc=part.name.removesuffix(".part"),
            unit="B",
            unit_scale=True,
            unit_divisor=1024,
        ) as bar,
    ):
        file.truncate(start)
        file.seek(start)
        while chunk := answer.read1(CHUNK):
            place += len(chunk)
            if place > limit:
                raise ValueError(f"{answer.url} sends more than the {limit:,} bytes that it may have.")
            file.write(chunk)
            bar.update(len(chunk))
    if size is not None and place < size:
        raise _Unfinished(f"the connection ended after {place:,} of {size:,} bytes")


def _length(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0


def _describe_path(part: Path) -> Path:
    return part.with_name(f"{part.name}.json")


def _read_remote(part: Path, url: str) -> Remote | None:
    """Return what the server said when `part` was begun; None if it is not known, or was another address."""
    try:
        remote = Remote(**json.loads(_describe_path(part).read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError):
        return None
    return remote if part.exists() and remote.url == url else None


def _forget(part: Path) -> None:
    """Remove a part and its description."""
    for path in (part, _describe_path(part)):
        path.unlink(missing_ok=True)


def sha256_of(path: Path) -> str:
    """Return the SHA-256 checksum of a file in hexadecimal."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(CHUNK):
            digest.update(chunk)
    return digest.hexdigest()
