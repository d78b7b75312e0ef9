# SPDX-License-Identifier: Apache-2.0
"""Which visitor's drawing is running, so that each can stop their own and nobody else's."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator


class Sessions:
    """The running drawings, by the id that the server gives each open page."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._running: dict[str, list[threading.Event]] = {}

    @contextlib.contextmanager
    def drawing(self, session: str) -> Iterator[threading.Event]:
        """Register a drawing inside the block, and provide the event that is set when it has to stop.

        Args:
            session: id of the page.
        """
        stop = threading.Event()
        with self._lock:
            self._running.setdefault(session, []).append(stop)
        try:
            yield stop
        finally:
            stop.set()
            with self._lock:
                self._running[session].remove(stop)
                if not self._running[session]:
                    del self._running[session]

    def stop(self, session: str) -> bool:
        """Stop the drawings of a page.

        Args:
            session: id of the page.

        Returns:
            Whether one was running.
        """
        with self._lock:
            events = list(self._running.get(session, ()))
        for event in events:
            event.set()
        return bool(events)

    def __len__(self) -> int:
        """Return the number of pages with a running drawing."""
        with self._lock:
            return len(self._running)
