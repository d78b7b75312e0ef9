# SPDX-License-Identifier: Apache-2.0
"""The part of the Hub's HTTP interface that loading and pushing a pipeline uses, served from a folder."""

import base64
import hashlib
import json
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlparse

COMMIT = "0123456789" * 4
REPOSITORY = r"(?P<repo>[\w.-]+/[\w.-]+)"
RESOLVE = re.compile(rf"/{REPOSITORY}/resolve/[^/]+/(?P<path>.+)")
INFO = re.compile(rf"/api/models/{REPOSITORY}(/revision/[^/]+)?")
TREE = re.compile(rf"/api/models/{REPOSITORY}/tree/[^/]+(/.*)?")
PREUPLOAD = re.compile(rf"/api/models/{REPOSITORY}/preupload/[^/]+")
COMMIT_CHANGES = re.compile(rf"/api/models/{REPOSITORY}/commit/[^/]+")
AUTH_CHECK = re.compile(rf"/api/models/{REPOSITORY}/auth-check/write")


class _Handler(BaseHTTPRequestHandler):
    root: Path
    downloads: list[str]
    token: str | None
    failures: dict[str, int]
    created: list[dict[str, Any]]

    def log_message(self, *args: Any) -> None:
        """Keep quiet."""

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        path = unquote(urlparse(self.path).path)
        if self._fails(path):
            return
        if match := RESOLVE.fullmatch(path):
            self._send_file(match["repo"], match["path"])
        elif match := TREE.fullmatch(path):
            self._send_json([{"type": "file", **entry} for entry in self._entries(match["repo"])])
        elif match := AUTH_CHECK.fullmatch(path):
            self._send_json({}, status=200 if (self.root / match["repo"]).is_dir() and self._may_write() else 403)
        elif match := INFO.fullmatch(path):
            siblings = [{"rfilename": entry["path"]} for entry in self._entries(match["repo"])]
            repo = match["repo"]
            self._send_json({"id": repo, "modelId": repo, "sha": COMMIT, "private": False, "siblings": siblings})
        else:
            self._send_json({"error": f"not faked: GET {path}"}, status=404)

    def do_POST(self) -> None:
        path = unquote(urlparse(self.path).path)
        body = self.rfile.read(int(self.headers["Content-Length"])).decode()
        if self._fails(path):
            return
        if not self._may_write():
            self._send_json({"error": "Invalid username or password."}, status=401)
        elif path == "/api/repos/create":
            request = json.loads(body)
            self.created.append(request)
            repo = f"{request.get('organization') or 'someone'}/{request['name']}"
            (self.root / repo).mkdir(parents=True, exist_ok=True)
            self._send_json({"url": f"http://{self.headers['Host']}/{repo}", "name": repo, "id": repo})
        elif path == "/api/validate-yaml":
            self._send_json({"errors": [], "warnings": []})
        elif PREUPLOAD.fullmatch(path):
            files = [{"path": file["path"]} for file in json.loads(body)["files"]]
            self._send_json({"files": [{**file, "uploadMode": "regular", "shouldIgnore": False} for file in files]})
        elif match := COMMIT_CHANGES.fullmatch(path):
            for change in map(json.loads, body.splitlines()):
                if change["key"] == "file":
                    target = self.root / match["repo"] / change["value"]["path"]
                    target.parent.mkdir(parents=True, exist_ok=True)
                    target.write_bytes(base64.b64decode(change["value"]["content"]))
            self._send_json({"commitUrl": f"http://{self.headers['Host']}/{match['repo']}", "commitOid": COMMIT})
        else:
            self._send_json({"error": f"not faked: POST {path}"}, status=404)

    def _fails(self, path: str) -> bool:
        """Answer with the error that requests to such a path are to get, if any."""
        status = next((status for part, status in self.failures.items() if part in path), None)
        if status is not None:
            self._send_json({"error": "made to fail"}, status=status)
        return status is not None

    def _may_write(self) -> bool:
        return self.token is None or self.headers.get("Authorization") == f"Bearer {self.token}"

    def _entries(self, repo: str) -> list[dict[str, Any]]:
        folder = self.root / repo
        return [
            {"path": path.relative_to(folder).as_posix(), "size": path.stat().st_size, "oid": _digest(path)}
            for path in sorted(folder.rglob("*"))
            if path.is_file()
        ]

    def _send_file(self, repo: str, name: str) -> None:
        file = self.root / repo / name
        if not file.is_file():
            code = "EntryNotFound" if (self.root / repo).is_dir() else "RepoNotFound"
            self._send_json({"error": code}, status=404, headers={"X-Error-Code": code, "X-Repo-Commit": COMMIT})
            return
        if self.command == "GET":
            self.downloads.append(name)
        self._send(200, file.read_bytes(), {"ETag": f'"{_digest(file)}"', "X-Repo-Commit": COMMIT})

    def _send_json(self, value: Any, status: int = 200, headers: dict[str, str] | None = None) -> None:
        self._send(status, json.dumps(value).encode(), {"Content-Type": "application/json", **(headers or {})})

    def _send(self, status: int, content: bytes, headers: dict[str, str]) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)


def _digest(path: Path) -> str:
    return hashlib.sha1(path.read_bytes(), usedforsecurity=False).hexdigest()


@contextmanager
def fake_hub(
    root: Path,
    token: str | None = None,
    failures: dict[str, int] | None = None,
    created: list[dict[str, Any]] | None = None,
) -> Iterator[tuple[str, list[str]]]:
    """Serve `root/<owner>/<name>/` as model repositories.

    Args:
        root: folder of the repositories.
        token: the one that may write; None lets everyone.
        failures: HTTP status that requests get whose path has a certain part; may change while the server runs.
        created: gets the requests to create a repository.

    Yields:
        The address for `HF_ENDPOINT`, and the list of files fetched so far, which grows.
    """
    downloads: list[str] = []
    settings = {"token": token, "failures": {} if failures is None else failures}
    settings["created"] = [] if created is None else created
    handler = type("Handler", (_Handler,), {"root": root, "downloads": downloads, **settings})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}", downloads
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
