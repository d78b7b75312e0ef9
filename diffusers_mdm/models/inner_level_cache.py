# SPDX-License-Identifier: Apache-2.0
"""Reuse of the inner levels between steps: what DeepCache (Ma et al. 2023, arXiv:2312.00858) does inside of a U-Net,
at the seam that a nested one has.

What an outer level takes from the levels inside it changes slowly from step to step. At every n-th step all levels
run; between, the features that the inner levels gave the outer one are used again, and their predictions are those
that stand for the same clean pictures as before. So the inner levels take steps that are n times longer.
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
    """How inner levels are reused, for `NestedUNetModel.enable_cache`.

    Args:
        scheduler: the `MatryoshkaScheduler` that draws: it knows which prediction stands for a clean picture.
        every: n, all levels run at every n-th step; 1 reuses nothing.
        num_levels: how many inner levels are reused; None for all but the outermost one.

    Raises:
        ValueError: a number below 1, or another scheduler.
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
                "MatryoshkaScheduler that draws."
            )


@dataclass
class Held:
    """What the inner levels gave when they ran last, in one context.

    Attributes:
        predictions: of the reused levels.
        samples: what they were shown.
        timestep: t then, of shape (1,).
        features: what the outermost of them gave to the level around it.
        pictures: the clean pictures that the predictions stand for, once they were asked for.
    """

    predictions: Pyramid
    samples: Pyramid
    timestep: torch.Tensor
    features: torch.Tensor
    pictures: Pyramid = field(default_factory=list)


@dataclass(frozen=True)
class _Context:
    """Which call of the model this is: its name, and how many steps were done before."""

    name: str
    step_index: int


_CONTEXT: ContextVar[_Context | None] = ContextVar("call of a model with a cache", default=None)


class InnerLevelCache:
    """What a model with `InnerLevelCacheConfig` holds, by thread and by the name of the call."""

    def __init__(self, config: InnerLevelCacheConfig, num_levels: int) -> None:
        self.config, self.num_levels = config, num_levels
        self._held: dict[tuple[int, str], Held] = {}

    def forget(self) -> None:
        """Drop what this thread's calls have left."""
        thread = threading.get_ident()
        self._held = {key: held for key, held in self._held.items() if key[0] != thread}

    def reused(self, samples: Pyramid, timesteps: torch.Tensor) -> tuple[Pyramid, torch.Tensor | None]:
        """Predictions of the inner levels that need not run, and what they gave the level around them.

        Nothing, `([], None)`, where all levels have to run.

        Raises:
            ValueError: the call stands outside of `cache_context`.
        """
        context = self._context()
        held = self._held.get((threading.get_ident(), context.name))
        # Inner levels alone have nobody to give features to: their steps would only become longer.
        if held is None or len(samples) <= self.num_levels or context.step_index % self.config.every == 0:
            return [], None
        if any(old.shape != new.shape for old, new in zip(held.samples, samples, strict=False)):
            return [], None
        return self._predictions(held, samples, timesteps), held.features

    def keep(self, predictions: Pyramid, features: torch.Tensor, samples: Pyramid, timesteps: torch.Tensor) -> None:
        """Hold what the reused levels gave, once all of them have run, if there is a level around them.

        Args:
            predictions: of the levels that are done.
            features: what the last of them gave to the level around it.
            samples: of all levels.
            timesteps: t of every batch row.
        """
        if len(predictions) == self.num_levels < len(samples):
            key = (threading.get_ident(), self._context().name)
            self._held[key] = Held(list(predictions), samples[: self.num_levels], timesteps[:1], features)

    def _predictions(self, held: Held, samples: Pyramid, timesteps: torch.Tensor) -> Pyramid:
        """Predictions that stand, in new samples, for the clean pictures of when the levels ran."""
        scheduler = self.config.scheduler

        def note(clean: torch.Tensor) -> torch.Tensor:
            held.pictures.append(clean)
            return clean

        if not held.pictures:
            scheduler.with_clean_changed(held.predictions, held.samples, held.timestep, note)
        pictures = iter(held.pictures)
        inner = samples[: self.num_levels]
        return scheduler.with_clean_changed(held.predictions, inner, timesteps[:1], lambda _: next(pictures))

    @staticmethod
    def _context() -> _Context:
        context = _CONTEXT.get()
        if context is None:
            raise ValueError(
                "This model reuses its inner levels between steps, and has to know which step a call is: call it in "
                "`with model.cache_context(name, step_index=...)`, or turn that off with `disable_cache`."
            )
        return context


class InnerLevelCacheMixin(CacheMixin):
    """diffusers' way of turning caches on and off, for `InnerLevelCacheConfig`.

    Attributes:
        inner_cache: None where nothing is reused.
        num_levels: of the model.
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
            config: says how often they run, and how many of them are reused.

        Raises:
            ValueError: another config, one of diffusers' for example; a cache is on already; there are no levels
                around so many.
        """
        if not isinstance(config, InnerLevelCacheConfig):
            raise ValueError(
                f"NestedUNetModel reuses its inner levels (`InnerLevelCacheConfig`); {type(config).__name__} is made "
                "for transformers whose blocks stand in one list, which it does not have."
            )
        if self.inner_cache is not None:
            raise ValueError("Inner levels are reused already; call `disable_cache` before another `enable_cache`.")
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
        """Say which call the calls inside are.

        Args:
            name: of calls that go on from one another, from step to step.
            step_index: how many steps were done before; all levels run at the first one and every n-th after it.
            kwargs: what diffusers' caches want to know besides; not used here.
        """
        token = _CONTEXT.set(_Context(name, step_index))
        try:
            yield
        finally:
            _CONTEXT.reset(token)
