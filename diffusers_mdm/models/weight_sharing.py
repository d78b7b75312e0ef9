# SPDX-License-Identifier: Apache-2.0
"""Building levels, and sharing layers between them: a level uses layers of the level inside it instead of its own.

Sharing saves weights and uses the same ones at several resolutions (an open direction of Gu et al. 2024). A shared
layer is registered only in the innermost level that uses it, so adding a level that shares layers keeps all parameter
names.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, cast

import torch
from torch import nn

from .blocks import BlockSettings, LayerBorrower, ResolutionBlock
from .level import Level
from .level_config import LevelConfig


def build_levels(config: Mapping[str, Any], level_configs: Sequence[LevelConfig], time_embed_dim: int) -> list[Level]:
    """Build the levels of a model, innermost first, and let them share layers as configured.

    Raises:
        ValueError: a level is configured to share blocks, but none of its layers can be shared.
    """
    levels: list[Level] = []
    for index, level_config in enumerate(level_configs):
        settings = BlockSettings.of_level(
            level_config,
            time_embed_dim=time_embed_dim,
            norm_eps=config["norm_eps"],
            num_attention_heads=config["num_attention_heads"],
            attention_norm_num_groups=config["attention_norm_num_groups"],
            text_dim=config["cross_attention_dim"],
        )
        inner_channels = level_configs[index - 1].block_out_channels[0] if index else None
        levels.append(Level(level_config, settings, config["in_channels"], config["out_channels"], inner_channels))
        if index > 0:
            share_layers(levels[index], levels[index - 1], level_config, index)
    return levels


def share_layers(outer: Level, inner: Level, config: LevelConfig, index: int) -> None:
    """Replace layers of level `index` by those of the level inside it, as its config says.

    Time embedding: the layers for the timestep and for each micro-condition that both levels have; the outer level
    keeps its own default values. Blocks: every residual, attention and resampling layer whose counterpart inside (the
    same layer of the same resolution, counted from the finest, in the encoder or decoder) has parameters of the same
    shapes.

    Raises:
        ValueError: no layer of the blocks has such a counterpart.
    """
    if config.share_time_embedding:
        outer.embedding.share_with(inner.embedding)
    if config.share_blocks:
        pairs = list(_counterparts(outer, inner))
        for block, kind, position, layer in pairs:
            block.borrow(layer, kind, position)
        if not pairs:
            raise ValueError(
                f"share_blocks[{index}] is True, but no layer of level {index} has the shapes of its counterpart in "
                f"level {index - 1}; give both levels the same channels (block_out_channels) at at least one "
                f"resolution, or set share_blocks to False."
            )


def _counterparts(outer: Level, inner: Level) -> Iterator[tuple[ResolutionBlock, str, int, nn.Module]]:
    """Yield (block, list and index of a layer of the outer level; the layer inside that can replace it)."""
    ways = (
        (list(outer.encoder.down_blocks), list(inner.encoder.down_blocks)),
        # The decoder begins with the coarsest resolution.
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
    """Return whether two layers differ only in the values of their parameters."""
    shapes, others = ({name: value.shape for name, value in layer.named_parameters()} for layer in (one, other))
    rotary, other_rotary = (getattr(layer, "has_rotary", None) for layer in (one, other))
    return type(one) is type(other) and shapes == others and rotary == other_rotary


def borrowed_names(model: nn.Module) -> dict[str, str]:
    """Map the name that every borrowed layer would have as the level's own layer to its actual name."""
    owners = {id(module): name for name, module in model.named_modules()}
    return {
        f"{name}.{place}": owners[id(layer)]
        for name, module in model.named_modules()
        if isinstance(module, LayerBorrower)
        for place, layer in module.borrowed.items()
    }


def unshared_state_dict(model: nn.Module, state: Mapping[str, torch.Tensor] | None = None) -> dict[str, torch.Tensor]:
    """Return the state dict of the same model without sharing, with shared tensors under each of their names.

    Args:
        model: a model whose levels share layers.
        state: its state dict; by default that of the model.
    """
    unshared = dict(model.state_dict() if state is None else state)
    for name, owner in borrowed_names(model).items():
        parts = [key for key in unshared if key.startswith(f"{owner}.")]
        unshared |= {name + key.removeprefix(owner): unshared[key] for key in parts}
    return unshared
