# SPDX-License-Identifier: Apache-2.0
"""A gate between two steps of a drawing, so that tests can act while it draws, however fast or slow the machine is."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from diffusers_mdm.web.served_model import ServedModel


class Gate:
    """Counts the steps of the drawings with a model, and keeps them waiting before a step while it is closed."""

    def __init__(self) -> None:
        self.steps = 0
        self._limit: int | None = None
        self._changed = threading.Condition()
        self._timestep: int | None = None

    def close_after(self, steps: int) -> None:
        """Let this many steps of the next drawing through."""
        with self._changed:
            self.steps, self._limit, self._timestep = 0, steps, None

    def let_through(self, steps: int = 1) -> None:
        """Let more steps through."""
        with self._changed:
            assert self._limit is not None
            self._limit += steps
            self._changed.notify_all()

    def open(self) -> None:
        """Let all steps through."""
        with self._changed:
            self._limit = None
            self._changed.notify_all()

    def wait(self, timestep: int) -> None:
        """Wait until the step that begins with this prediction is let through."""
        with self._changed:
            if timestep == self._timestep:
                return  # guidance calls the model several times in a step
            self._changed.wait_for(lambda: self._limit is None or self.steps < self._limit)
            self.steps, self._timestep = self.steps + 1, timestep


@contextmanager
def gate_of(model: ServedModel) -> Iterator[Gate]:
    """Provide an open gate in front of a model; in the end it lets everything through that waits."""
    gate = Gate()

    def wait(module: torch.nn.Module, args: tuple, kwargs: dict) -> None:
        timestep = kwargs["timestep"] if "timestep" in kwargs else args[1]
        gate.wait(int(torch.as_tensor(getattr(timestep, "timesteps", timestep)).flatten()[0]))

    hook = model.pipeline.unet.register_forward_pre_hook(wait, with_kwargs=True)
    try:
        yield gate
    finally:
        hook.remove()
        gate.open()
