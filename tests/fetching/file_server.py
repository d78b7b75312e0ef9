# SPDX-License-Identifier: Apache-2.0
"""A server on the loopback interface that answers as well, or as badly, as a test asks."""

import http.server
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field


@dataclass
class Behaviour:
    """What the server has and does.

    Attributes:
        content: the file.
        tag: its entity tag; None for none.
        knows_ranges: whether requests for a part are honoured.
        cut_after: for each request in order, after how many bytes of the body the connection ends.
        statuses: for each request in order, an error to answer with; 0 for none.
        headers: further headers.
        has_length: whether the size is sent.
        shift: added to the place at which an answer to a request for a part begins.
        silence: seconds without a byte in the middle of the body.
        requests: the Range header of every request (None without one).
    """

    content: bytes
    tag: str | None = '"one"'
    knows_ranges: bool = True
    cut_after: list[int] = field(default_factory=list)
    statuses: list[int] = field(default_factory=list)
    headers: dict[str, str] = field(default_factory=dict)
    has_length: bool = True
    shift: int = 0
    silence: float = 0.0
    requests: list[str | None] = field(default_factory=list)
    paths: list[str] = field(default_factory=list)


class Handler(http.server.BaseHTTPRequestHandler):
    behaviour: Behaviour

    def do_GET(self) -> None:
        with suppress(ConnectionError):  # a client that has had enough
            self.answer()

    def answer(self) -> None:
        does = self.behaviour
        does.requests.append(self.headers["Range"])
        does.paths.append(self.path)
        status = does.statuses.pop(0) if does.statuses else 0
        if status:
            self.send_response(status)
            for name, value in does.headers.items():
                self.send_header(name, value)
            self.send_header("Content-Length", "0")
            self.end_headers()
            return
        body = does.content[self.begin() :]
        if does.has_length:
            self.send_header("Content-Length", str(len(body)))
        for name, value in {"Content-Type": "application/octet-stream", **does.headers}.items():
            self.send_header(name, value)
        if does.tag is not None:
            self.send_header("ETag", does.tag)
        self.end_headers()
        cut = does.cut_after.pop(0) if does.cut_after else len(body)
        self.wfile.write(body[: cut // 2])
        self.wfile.flush()
        time.sleep(does.silence)
        self.wfile.write(body[cut // 2 : cut])

    def begin(self) -> int:
        """Send the status line, and return where in the file the answer begins."""
        does, asked = self.behaviour, self.headers["Range"]
        same = self.headers["If-Range"] in (None, does.tag)
        if asked is None or not does.knows_ranges or not same:
            self.send_response(200)
            return 0
        start = int(asked.removeprefix("bytes=").rstrip("-")) + does.shift
        if start >= len(does.content):
            self.send_response(416)
            self.send_header("Content-Range", f"bytes */{len(does.content)}")
            return len(does.content)
        self.send_response(206)
        self.send_header("Content-Range", f"bytes {start}-{len(does.content) - 1}/{len(does.content)}")
        return start

    def log_message(self, *arguments: object) -> None:
        pass


@contextmanager
def serving(behaviour: Behaviour) -> Iterator[str]:
    """Run a server inside the block; its address is given."""
    handler = type("OneHandler", (Handler,), {"behaviour": behaviour})
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True)
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}"
        finally:
            server.shutdown()
