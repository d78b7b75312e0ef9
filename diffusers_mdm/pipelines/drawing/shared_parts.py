# SPDX-License-Identifier: Apache-2.0
"""How drawings that go on at the same time, in several threads, keep out of each other's way.

Pipelines share their parts: one pipeline may be called from several threads, and `from_pipe` makes siblings around the
same parts. What changes while a drawing goes on must belong to that drawing alone:

- the scheduler, which counts its steps: the first drawing takes the pipeline's own, so that callbacks find in
  `pipeline.scheduler` what they expect; a drawing that finds it taken works with a copy;
- guidance and the like, which callbacks change through the pipeline: see `RunningDrawings`;
- adapters, which are rescaled in place while the model runs: such models run one call at a time;
- weights that are moved while they draw (offloading, layerwise casting) cannot be shared at all: this is refused.
"""

from __future__ import annotations

import contextlib
import copy
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import torch

_REGISTRY = threading.Lock()
_TAKEN_SCHEDULERS: set[int] = set()
_DRAWING_THREADS: dict[int, list[int]] = {}  # of each U-Net that draws, by the id of the module
_RESCALED_ADAPTERS = threading.RLock()


@dataclass
class Controls:
    """What callbacks may read and change, through the pipeline, while a drawing goes on.

    Attributes:
        guidance_scale: weight w of classifier-free guidance.
        guidance_rescale: how far the spread of the guided prediction is brought back, 0 to 1.
        cross_attention_kwargs: passed to the model at each step.
        num_timesteps: number of steps.
        interrupt: whether to skip the remaining steps.
    """

    guidance_scale: float = 1.0
    guidance_rescale: float = 0.0
    cross_attention_kwargs: dict[str, Any] | None = None
    num_timesteps: int = 0
    interrupt: bool = False


@dataclass
class RunningDrawings:
    """The controls of all drawings that a pipeline is making, by thread, and of the one that it finished last."""

    last: Controls = field(default_factory=Controls)
    by_thread: dict[int, list[Controls]] = field(default_factory=dict)

    @contextlib.contextmanager
    def one_more(self, controls: Controls) -> Iterator[None]:
        """Make these the controls that this thread sees while the drawing goes on."""
        thread = threading.get_ident()
        # A callback may draw with the same pipeline: the drawing inside has its own controls.
        nested = self.by_thread.setdefault(thread, [])
        nested.append(controls)
        try:
            yield
        finally:
            nested.remove(controls)
            if not nested:
                del self.by_thread[thread]
            self.last = controls

    def get(self, name: str) -> Any:
        """Read a control: of this thread's drawing, else of the latest one of the others, else of the last one."""
        return getattr(self._addressed()[-1], name)

    def set(self, name: str, value: Any) -> None:
        """Change a control: of this thread's drawing, or from outside of all drawings that go on.

        So a callback changes its own drawing, and a button that stops the pipeline stops all of them.
        """
        for controls in self._addressed():
            setattr(controls, name, value)

    def _addressed(self) -> list[Controls]:
        own = self.by_thread.get(threading.get_ident())
        if own:
            return own[-1:]
        return [controls for nested in list(self.by_thread.values()) for controls in nested] or [self.last]


@contextlib.contextmanager
def scheduler_of_its_own(scheduler: Any) -> Iterator[Any]:
    """The scheduler, or a copy of it while another drawing uses it."""
    with _REGISTRY:
        is_taken = id(scheduler) in _TAKEN_SCHEDULERS
        _TAKEN_SCHEDULERS.add(id(scheduler))
    if is_taken:
        yield copied_scheduler(scheduler)
        return
    try:
        yield scheduler
    finally:
        with _REGISTRY:
            _TAKEN_SCHEDULERS.discard(id(scheduler))


def copied_scheduler(scheduler: Any) -> Any:
    """A copy that shares nothing that changes; the original may be in the middle of a step."""
    state = vars(scheduler).copy()
    # What is computed once from the config is never changed in place, so it need not be copied.
    tensors = {id(value): value for value in state.values() if isinstance(value, torch.Tensor)}
    other = object.__new__(type(scheduler))
    vars(other).update(copy.deepcopy(state, tensors))
    return other


@contextlib.contextmanager
def models_in_use(unet: Any) -> Iterator[None]:
    """Note that this thread draws with a model.

    Raises:
        ValueError: another thread does so already, and the model moves between devices.
    """
    thread = threading.get_ident()
    with _REGISTRY:
        threads = _DRAWING_THREADS.setdefault(id(unet), [])
        if any(other != thread for other in threads) and _has_moving_weights(unet):
            raise ValueError(
                "This pipeline moves its weights while it draws (offloading or layerwise casting), and another thread "
                "is drawing with them: draw one after the other, put all prompts into one call, or load a pipeline "
                "for each thread."
            )
        threads.append(thread)
    try:
        yield
    finally:
        with _REGISTRY:
            threads.remove(thread)
            if not threads:
                _DRAWING_THREADS.pop(id(unet), None)


def _has_moving_weights(model: Any) -> bool:
    """Whether hooks of accelerate or of diffusers move weights to a device, or to another precision, and back."""
    modules = model.modules() if isinstance(model, torch.nn.Module) else ()
    return any(hasattr(module, "_hf_hook") or hasattr(module, "_diffusers_hook") for module in modules)


def adapters_to_itself(unet: Any) -> contextlib.AbstractContextManager[Any]:
    """For one call of a model: keep other threads from rescaling its adapters meanwhile."""
    return _RESCALED_ADAPTERS if getattr(unet, "peft_config", None) else contextlib.nullcontext()
