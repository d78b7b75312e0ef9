# SPDX-License-Identifier: Apache-2.0
"""Ending a run between two steps when the system or the user asks for it (SIGTERM, SIGINT)."""

import contextlib
import signal
import threading
from collections.abc import Iterator
from types import FrameType

import torch
from accelerate import Accelerator

SIGNALS = (signal.SIGTERM, signal.SIGINT)


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
        """Take the signals inside the block. In threads other than the main one, signals stay as they are."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        before = {number: signal.getsignal(number) for number in SIGNALS}
        self._before = before
        for number in SIGNALS:
            signal.signal(number, self._remember)
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def _remember(self, number: int, frame: FrameType | None) -> None:
        self.received = signal.Signals(number).name
        for known in SIGNALS:
            signal.signal(known, self._before[known])

    def is_wanted(self, accelerator: Accelerator) -> bool:
        """Whether any process was asked to stop; all of them get the same answer, and have to ask together."""
        if accelerator.num_processes == 1:
            return self.received is not None
        asked = torch.tensor(float(self.received is not None), device=accelerator.device)
        return bool(accelerator.reduce(asked, "sum") > 0)
