# SPDX-License-Identifier: Apache-2.0
"""A program that serves a web page, as a process of its own."""

import socket
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

PATIENCE = 180.0  # seconds until the page appears; importing torch takes ten, on a busy machine many more


def free_port() -> int:
    """A port of this machine at which nothing listens."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def first_page(command: Callable[[int], Sequence[str]], folder: Path, environment: Mapping[str, str]) -> str:
    """Start a server, and return its page as soon as it sends it; the server is ended.

    Args:
        command: returns the words that serve at a port.
        folder: where to run it.
        environment: its variables.
    """
    port = free_port()
    server = subprocess.Popen(
        list(command(port)), cwd=folder, env={**environment, "GRADIO_SERVER_PORT": str(port)}, text=True,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
    )  # fmt: skip
    end = time.monotonic() + PATIENCE
    try:
        while time.monotonic() < end and server.poll() is None:
            try:
                with urllib.request.urlopen(f"http://127.0.0.1:{port}/") as answer:
                    return answer.read().decode()
            except urllib.error.URLError:
                time.sleep(0.5)
    finally:
        server.terminate()
        said = server.communicate(timeout=60)[0]
    raise AssertionError(f"The page did not appear:\n{said[-3000:]}")
