# SPDX-License-Identifier: Apache-2.0
"""Levels that run layers of the level inside them in place of their own: fewer weights, and one set of them for
several resolutions (an open direction of Gu et al. 2024).

A shared layer belongs to the innermost level that runs it and is registered there alone, so a model that grows by a
sharing level keeps all of its parameters' names.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import cast

import torch
from torch import nn

from .blocks import LayerBorrower, ResolutionBlock
from .level import Level
from .level_config import LevelConfig


def share_layers(outer: Level, inner: Level, row: LevelConfig, index: int) -> None:
    """Let level `index` run what its row says with layers of the level inside it.

    Time embedding: the layers for the time and for each micro-condition that both levels know; the outer level keeps
    its own default values. Blocks: every residual, attention and resampling layer whose counterpart inside (the same
    layer of the same resolution, counted from the finest, on the same way) has parameters of the same shapes.

    Raises:
        ValueError: no layer of the blocks has such a counterpart.
    """
    if row.share_time_embedding:
        outer.embedding.share_with(inner.embedding)
    if row.share_blocks:
        pairs = list(_counterparts(outer, inner))
        for block, kind, position, layer in pairs:
            block.borrow(layer, kind, position)
        if not pairs:
            raise ValueError(
                f"share_blocks[{index}] is True, but no layer of level {index} has the shapes of its counterpart in "
                f"level {index - 1}; give both levels the same channels (block_out_channels) at one resolution at "
                "least, or set share_blocks to False."
            )


def _counterparts(outer: Level, inner: Level) -> Iterator[tuple[ResolutionBlock, str, int, nn.Module]]:
    """(block, list and position of a layer of the outer level; the layer inside that can stand in for it)."""
    ways = (
        (list(outer.encoder.down_blocks), list(inner.encoder.down_blocks)),
        # The way up begins with the coarsest resolution.
        (list(outer.decoder.up_blocks)[::-1], list(inner.decoder.up_blocks)[::-1]),
    )
    for ours, theirs in ways:
        for ours_here, theirs_here in zip(ours, theirs, strict=False):
            block, other = cast(ResolutionBlock, ours_here), cast(ResolutionBlock, theirs_here)
            inside = dict(other.layers_by_place())
            for place, (kind, position) in block.layers_by_place():
                if place in inside:
                    own, candidate = block.layer(kind, position), other.layer(*inside[place])
                    if _is_alike(own, candidate):
                        yield block, kind, position, candidate


def _is_alike(one: nn.Module, other: nn.Module) -> bool:
    """Whether two layers differ in nothing but the values of their parameters."""
    shapes, others = ({name: value.shape for name, value in layer.named_parameters()} for layer in (one, other))
    rotary, other_rotary = (getattr(layer, "has_rotary", None) for layer in (one, other))
    return type(one) is type(other) and shapes == others and rotary == other_rotary


def borrowed_names(model: nn.Module) -> dict[str, str]:
    """Name of every layer that a level borrows, as if it were its own → name of the layer it is."""
    owners = {id(module): name for name, module in model.named_modules()}
    return {
        f"{name}.{place}": owners[id(layer)]
        for name, module in model.named_modules()
        if isinstance(module, LayerBorrower)
        for place, layer in module.borrowed.items()
    }


def unshared_state_dict(model: nn.Module, state: Mapping[str, torch.Tensor] | None = None) -> dict[str, torch.Tensor]:
    """The state dict of the same model without sharing: a shared tensor stands under each of its names.

    Args:
        model: whose levels share layers.
        state: its state dict; read off the model by default.
    """
    unshared = dict(model.state_dict() if state is None else state)
    for name, owner in borrowed_names(model).items():
        parts = [key for key in unshared if key.startswith(f"{owner}.")]
        unshared |= {name + key.removeprefix(owner): unshared[key] for key in parts}
    return unshared
