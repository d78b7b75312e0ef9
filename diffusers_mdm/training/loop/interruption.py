# SPDX-License-Identifier: Apache-2.0
"""Stopping a run between two steps by a signal (SIGTERM, SIGINT, SIGHUP)."""

import contextlib
import signal
import threading
from collections.abc import Iterator
from types import FrameType

import torch
from accelerate import Accelerator

# SIGHUP (closed terminal) does not exist on Windows.
SIGNALS = tuple(getattr(signal, name) for name in ("SIGTERM", "SIGINT", "SIGHUP") if hasattr(signal, name))


class RunInterrupted(Exception):  # noqa: N818  it is not an error
    """The run was stopped by a signal; the message says how to resume."""


class Interruption:
    """Records signals, which the training loop checks after every step.

    A second signal has its normal effect.
    """

    def __init__(self) -> None:
        self.received: str | None = None

    @contextlib.contextmanager
    def listening(self) -> Iterator[None]:
        """Handle the signals inside the block, except in threads other than the main one.

        Signals that are already ignored remain so: `nohup` lets a run outlive its terminal in this way.
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
        """Return whether any process has received a signal; every process must call this, and all get the same
        result.
        """
        if accelerator.num_processes == 1:
            return self.received is not None
        asked = torch.tensor(float(self.received is not None), device=accelerator.device)
        return bool(accelerator.reduce(asked, "sum") > 0)
