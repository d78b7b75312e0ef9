# SPDX-License-Identifier: Apache-2.0
"""Ending a run between two steps when the system or the user asks for it (SIGTERM, SIGINT, SIGHUP)."""

import contextlib
import signal
import threading
from collections.abc import Iterator
from types import FrameType

import torch
from accelerate import Accelerator

# SIGHUP, a terminal that was closed, does not exist on Windows.
SIGNALS = tuple(getattr(signal, name) for name in ("SIGTERM", "SIGINT", "SIGHUP") if hasattr(signal, name))


class RunInterrupted(Exception):  # noqa: N818  it is not an error
    """A run was asked to stop, and has: its message says how to go on."""


class Interruption:
    """Remembers that a signal came; the training loop asks after every step.

    A second signal acts at once, as it would without this.
    """

    def __init__(self) -> None:
        self.received: str | None = None

    @contextlib.contextmanager
    def listening(self) -> Iterator[None]:
        """Take the signals inside the block. In threads other than the main one, signals stay as they are.

        So does a signal that is ignored already: `nohup` lets a run outlive its terminal in this way.
        """
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        found = {number: signal.getsignal(number) for number in SIGNALS}
        before = {number: handler for number, handler in found.items() if handler != signal.SIG_IGN}
        self._before = before
        for number in before:
            signal.signal(number, self._remember)
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def _remember(self, number: int, frame: FrameType | None) -> None:
        self.received = signal.Signals(number).name
        for known, handler in self._before.items():
            signal.signal(known, handler)

    def is_wanted(self, accelerator: Accelerator) -> bool:
        """Whether any process was asked to stop; call this on every process, all of which get the same answer."""
        if accelerator.num_processes == 1:
            return self.received is not None
        asked = torch.tensor(float(self.received is not None), device=accelerator.device)
        return bool(accelerator.reduce(asked, "sum") > 0)
