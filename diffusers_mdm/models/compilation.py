# SPDX-License-Identifier: Apache-2.0
"""Compilation of a model for calls with varying batches, sizes and prompts."""

from __future__ import annotations

import inspect
from typing import Any, cast

import torch

from ..library_internals import MARK_DYNAMIC, raise_graph_limit

# A graph works for any size, but torch makes separate graphs if a batch or a prompt has exactly one entry, if levels
# have equal batch sizes, for each number of levels, and (on CPUs) if another convolution is faster. With torch's
# default limit of 8 graphs, `fullgraph=True` fails before all of them have been made.
GRAPHS_OF_A_MODEL = 64


def with_room_for_graphs(options: dict[str, Any]) -> dict[str, Any]:
    """Return the options of `torch.compile` with a limit that allows all graphs of a model, unless they set a
    limit.
    """
    if "recompile_limit" in inspect.signature(torch.compile).parameters:
        return {"recompile_limit": GRAPHS_OF_A_MODEL, **options}
    # Older versions of torch have one limit for all compiled models instead of one per model.
    raise_graph_limit(GRAPHS_OF_A_MODEL)
    return options


def allow_other_lengths(states: torch.Tensor, mask: torch.Tensor | None) -> None:
    """Mark the number of tokens as one that changes, so that a compiled model makes one graph for texts of any length.

    Without the mark, the first call makes a graph for its own length only. A text of one token has a graph of its own
    nevertheless: torch always compiles for a size of 1.

    Args:
        states: text features `(B, L, D)`.
        mask: their mask `(B, L)`, or None.
    """
    for tensor in (states, mask):
        if tensor is not None and tensor.shape[1] > 1:
            MARK_DYNAMIC.get()(tensor, 1)


class CompilationMixin:
    """Mixin for `compile` and `compile_repeated_blocks`, for calls that differ in batch, size, number of levels and
    prompt.
    """

    def compile(self, *args: Any, **kwargs: Any) -> None:
        """Compile the whole model at its first call, like `torch.nn.Module.compile` and with the same arguments.

        The first call with different sizes makes a graph for all sizes.
        """
        cast(Any, super()).compile(*args, **with_room_for_graphs(kwargs))

    def compile_repeated_blocks(self, *args: Any, **kwargs: Any) -> None:
        """Compile only the attention layers, once per shape: faster to compile than `compile`, with a smaller speedup.

        Residual layers are not included: nearly every one has different channels and would be compiled separately.

        Args:
            args: as in `torch.compile`.
            kwargs: as in `torch.compile`; `dynamic` is True by default, so that a graph serves every size at once.
        """
        options = with_room_for_graphs({"dynamic": True, **kwargs})
        cast(Any, super()).compile_repeated_blocks(*args, **options)
