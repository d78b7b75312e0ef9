# SPDX-License-Identifier: Apache-2.0
"""Reuse of inner levels between steps, like DeepCache (Ma et al. 2023, arXiv:2312.00858) but at the boundary of
levels.

The features that an outer level receives from the levels inside it change slowly from step to step. At every n-th step
all levels run; in between, the features are reused, and the predictions of the inner levels are those for the same
clean images as before. So the inner levels take steps that are n times longer.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any

import torch
from diffusers.models.cache_utils import CacheMixin

from ..checked_values import check_whole_number
from ..pyramid import Pyramid


@dataclass(frozen=True)
class InnerLevelCacheConfig:
    """Settings of `NestedUNetModel.enable_cache` for reusing inner levels between steps.

    Args:
        scheduler: the pipeline's `MatryoshkaScheduler`, which converts between predictions and clean images.
        every: n; all levels run at every n-th step. With 1, nothing is reused.
        num_levels: number of inner levels that are reused; None for all but the outermost one.

    Raises:
        ValueError: a number is below 1, or the scheduler is of another class.
    """

    scheduler: Any
    every: int = 2
    num_levels: int | None = None

    def __post_init__(self) -> None:
        check_whole_number(self.every, "`every` of InnerLevelCacheConfig", 1, 10_000)
        if self.num_levels is not None:
            check_whole_number(self.num_levels, "`num_levels` of InnerLevelCacheConfig", 1, 1000)
        if not hasattr(self.scheduler, "with_clean_changed"):
            raise ValueError(
                f"`scheduler` of InnerLevelCacheConfig is a {type(self.scheduler).__name__}; expected the "
                f"MatryoshkaScheduler of the pipeline."
            )


@dataclass
class Held:
    """The results of the inner levels from the last step at which they ran, in one context.

    Attributes:
        predictions: predictions of the reused levels.
        samples: the inputs of these levels.
        timestep: t at that step, of shape (1,).
        features: features that the outermost of them passed to the level around it.
        images: clean images computed from the predictions, once they are needed.
    """

    predictions: Pyramid
    samples: Pyramid
    timestep: torch.Tensor
    features: torch.Tensor
    images: Pyramid = field(default_factory=list)


@dataclass(frozen=True)
class _Context:
    """The context of a call of the model: its name, and the number of steps before it."""

    name: str
    step_index: int


_CONTEXT: ContextVar[_Context | None] = ContextVar("call of a model with a cache", default=None)


class InnerLevelCache:
    """The cached results of inner levels, by thread and by name of the context."""

    def __init__(self, config: InnerLevelCacheConfig, num_levels: int) -> None:
        self.config, self.num_levels = config, num_levels
        self._held: dict[tuple[int, str], Held] = {}

    def forget(self) -> None:
        """Discard the results of this thread's calls."""
        thread = threading.get_ident()
        self._held = {key: held for key, held in self._held.items() if key[0] != thread}

    def reused(self, samples: Pyramid, timesteps: torch.Tensor) -> tuple[Pyramid, torch.Tensor | None]:
        """Return predictions of inner levels that need not run, and the features for the level around them.

        If all levels have to run, that is `([], None)`.

        Raises:
            ValueError: the call is outside `cache_context`.
        """
        context = self._context()
        held = self._held.get((threading.get_ident(), context.name))
        # Without an outer level, reuse would only make the steps longer.
        if held is None or len(samples) <= self.num_levels or context.step_index % self.config.every == 0:
            return [], None
        if any(old.shape != new.shape for old, new in zip(held.samples, samples, strict=False)):
            return [], None
        return self._predictions(held, samples, timesteps), held.features

    def keep(self, predictions: Pyramid, features: torch.Tensor, samples: Pyramid, timesteps: torch.Tensor) -> None:
        """Store the results of the reused levels, once all of them have run, if there is a level around them.

        Args:
            predictions: predictions of the levels that have run.
            features: features that the last of them passes to the level around it.
            samples: inputs of all levels.
            timesteps: t of every sample.
        """
        if len(predictions) == self.num_levels < len(samples):
            key = (threading.get_ident(), self._context().name)
            self._held[key] = Held(list(predictions), samples[: self.num_levels], timesteps[:1], features)

    def _predictions(self, held: Held, samples: Pyramid, timesteps: torch.Tensor) -> Pyramid:
        """Return the predictions that, for new samples, correspond to the clean images of the last step."""
        scheduler = self.config.scheduler

        def note(clean: torch.Tensor) -> torch.Tensor:
            held.images.append(clean)
            return clean

        if not held.images:
            scheduler.with_clean_changed(held.predictions, held.samples, held.timestep, note)
        images = iter(held.images)
        inner = samples[: self.num_levels]
        return scheduler.with_clean_changed(held.predictions, inner, timesteps[:1], lambda _: next(images))

    @staticmethod
    def _context() -> _Context:
        context = _CONTEXT.get()
        if context is None:
            raise ValueError(
                "This model reuses its inner levels between steps, so it must know the step of each call: call it in "
                "`with model.cache_context(name, step_index=...)`, or turn the cache off with `disable_cache`."
            )
        return context


class InnerLevelCacheMixin(CacheMixin):
    """Mixin with diffusers' methods for turning caches on and off, for `InnerLevelCacheConfig`.

    Attributes:
        inner_cache: the cache; None if it is off.
        num_levels: number of levels of the model.
    """

    inner_cache: InnerLevelCache | None = None
    num_levels: Any

    @property
    def is_cache_enabled(self) -> bool:
        """Whether inner levels are reused between steps."""
        return self.inner_cache is not None

    def enable_cache(self, config: InnerLevelCacheConfig) -> None:
        """Reuse the inner levels between steps.

        Args:
            config: how often inner levels run, and how many of them are reused.

        Raises:
            ValueError: the config is of another class, such as one of diffusers'; a cache is already on; or the model
                has too few levels.
        """
        if not isinstance(config, InnerLevelCacheConfig):
            raise ValueError(
                f"NestedUNetModel reuses its inner levels (`InnerLevelCacheConfig`); {type(config).__name__} is made "
                "for transformers with a single list of blocks, which this model does not have."
            )
        if self.inner_cache is not None:
            raise ValueError("A cache is already on; call `disable_cache` before another `enable_cache`.")
        num_levels = self.num_levels - 1 if config.num_levels is None else config.num_levels
        if not 1 <= num_levels < self.num_levels:
            raise ValueError(
                f"The model has {self.num_levels} levels, so at most {self.num_levels - 1} are inside of another one "
                f"and can be reused, not {config.num_levels or 'any'}."
            )
        self.inner_cache = InnerLevelCache(config, num_levels)

    def disable_cache(self) -> None:
        """Run all levels at every step again."""
        self.inner_cache = None

    @contextlib.contextmanager
    def cache_context(self, name: str, step_index: int = 0, **kwargs: Any) -> Iterator[None]:
        """Set the context of calls inside the block.

        Args:
            name: common name of calls that follow each other from step to step.
            step_index: number of steps before; all levels run at the first step and every n-th step after it.
            kwargs: further arguments of diffusers' caches, which are not used.
        """
        token = _CONTEXT.set(_Context(name, step_index))
        try:
            yield
        finally:
            _CONTEXT.reset(token)
