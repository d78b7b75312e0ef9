# SPDX-License-Identifier: Apache-2.0
"""Compiling a model whose batches, sizes and prompts change from call to call."""

from __future__ import annotations

import inspect
from typing import Any, cast

import torch

from ..library_internals import raise_graph_limit

# A graph serves any size, but torch makes others where a batch or a prompt has exactly one entry, where levels have
# equally many rows, for each number of levels, and (on CPUs) where another convolution is faster. torch's own limit
# of 8 ends `fullgraph=True` with an error before all of them have been met.
GRAPHS_OF_A_MODEL = 64


def with_room_for_graphs(options: dict[str, Any]) -> dict[str, Any]:
    """Options of `torch.compile`, with room for the graphs that one model may need where they do not set a limit."""
    if "recompile_limit" in inspect.signature(torch.compile).parameters:
        return {"recompile_limit": GRAPHS_OF_A_MODEL, **options}
    # Before torch had a limit for each compiled model, it was one for all of them.
    raise_graph_limit(GRAPHS_OF_A_MODEL)
    return options


class CompilationMixin:
    """`compile` and `compile_repeated_blocks` for calls that differ in batch, size, number of levels and prompt."""

    def compile(self, *args: Any, **kwargs: Any) -> None:
        """Compile the whole model at its first call, as `torch.nn.Module.compile` does, with the same arguments.

        The second call with other sizes makes a graph for all sizes.
        """
        cast(Any, super()).compile(*args, **with_room_for_graphs(kwargs))

    def compile_repeated_blocks(self, *args: Any, **kwargs: Any) -> None:
        """Compile the attention layers only, each shape of them once: sooner done than `compile`, and less to gain.

        Residual layers are not among them: nearly every one has channels of its own, so each would be compiled anew.

        Args:
            args: as in `torch.compile`.
            kwargs: as in `torch.compile`; `dynamic` is True by default, so that a graph serves every size at once.
        """
        options = with_room_for_graphs({"dynamic": True, **kwargs})
        cast(Any, super()).compile_repeated_blocks(*args, **options)
