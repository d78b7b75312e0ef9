# SPDX-License-Identifier: Apache-2.0
"""The components of a pipeline: checks of their classes, and their reuse in other pipelines."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from contextvars import ContextVar
from typing import Any

from diffusers_mdm.checked_values import describe
from diffusers_mdm.library_internals import inside_of
from diffusers_mdm.models import NestedUNetModel

# diffusers casts all components of a converted pipeline to one precision; ours are shared and must not be changed.
_KEEPS_PRECISION: ContextVar[bool] = ContextVar("keeps precision", default=False)


def checked_components(components: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return the components of a pipeline after checking their classes; None stands for a component that is not
    needed.

    Args:
        components: the components by name.

    Raises:
        TypeError: names the component of a wrong class, and what was expected.
    """
    # Compiled and distributed models contain the actual model.
    unet = components.get("unet")
    bare = inside_of(unet)
    works = {
        "unet": (isinstance(bare, NestedUNetModel), "a NestedUNetModel"),
        "scheduler": (_has(components, "scheduler", "set_timesteps", "step"), "a scheduler, e.g. MatryoshkaScheduler"),
        "text_encoder": (_has(components, "text_encoder", "forward", "config"), "a text encoder of transformers"),
        "tokenizer": (callable(components.get("tokenizer")), "a tokenizer of transformers"),
        "vae": (_has(components, "vae", "encode", "decode", "config"), "an autoencoder of diffusers"),
    }
    for name, (is_right, expected) in works.items():
        if components.get(name) is not None and not is_right:
            raise TypeError(f"`{name}` is {describe(components[name])}; expected {expected}.")
    return components


def _has(components: Mapping[str, Any], name: str, *parts: str) -> bool:
    return all(hasattr(components.get(name), part) for part in parts)


@contextlib.contextmanager
def keeping_precision() -> Iterator[None]:
    """Prevent pipelines of this thread from moving or casting their components inside the block."""
    token = _KEEPS_PRECISION.set(True)
    try:
        yield
    finally:
        _KEEPS_PRECISION.reset(token)


def keeps_precision() -> bool:
    """Return whether the code runs inside of `keeping_precision`."""
    return _KEEPS_PRECISION.get()
