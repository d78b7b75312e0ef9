# SPDX-License-Identifier: Apache-2.0
"""Training without the features that levels give to each other, on their way inwards, outwards, or both."""

from __future__ import annotations

import contextlib
from collections.abc import Collection, Iterator
from typing import Any, Literal

import torch
from torch.nn.modules.module import register_module_forward_pre_hook

from diffusers_mdm.models.level import LevelDecoder, LevelEncoder

Way = Literal["inwards", "outwards"]


@contextlib.contextmanager
def without_features(ways: Collection[Way]) -> Iterator[None]:
    """Hide the features of the level outside ("inwards") or inside ("outwards") from every level, in this block.

    The adapters (`in_adapter`, `out_adapter`) that would pass them on are zero in a new model, and get no gradient
    here, so that they still are zero after training: a saved model needs nothing special for drawing.
    """

    def hide(module: torch.nn.Module, inputs: tuple[Any, ...]) -> tuple[Any, ...] | None:
        if isinstance(module, LevelEncoder) and "inwards" in ways:
            sample, _, *rest = inputs
            return (sample, None, *rest)
        if isinstance(module, LevelDecoder) and "outwards" in ways:
            hidden_states, skips, _, *rest = inputs
            return (hidden_states, skips, None, *rest)
        return None

    # Hooks of all modules reach the models that the engine creates.
    handle = register_module_forward_pre_hook(hide)
    try:
        yield
    finally:
        handle.remove()
