# SPDX-License-Identifier: Apache-2.0
"""Growing a model and opening it: new models that keep old weights, and what follows for the new ones."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable, Sequence
from typing import Any, TypeVar, cast

import torch
from torch import nn

from ..library_internals import DEFAULTED_KEYS
from .level import Level
from .level_config import TEMPORAL_HEAD_DIM, LevelConfig
from .level_geometry import level_sides
from .loading.gathered_weights import StateDict, common_device, gathered_state_dict
from .temporal import TemporalAttention
from .weight_sharing import unshared_state_dict

T = TypeVar("T", bound="GrowthMixin")


class GrowthMixin:
    """Methods of `NestedUNetModel` that make another model of it."""

    config: Any
    levels: nn.ModuleList
    from_config: Callable[..., Any]

    def add_level(self: T, row: LevelConfig) -> T:
        """A new model with one more level around this one; the inner levels' predictions do not change by a bit.

        The old parameters keep their names and are the first of the new model's. The new level's adapters, output and
        residual branches start at zero.

        Args:
            row: structure of the new level. With `temporal_downsample` it has more frames than this model's outermost
                level, so a model of pictures becomes the inner part of a model of clips.
        """
        num_levels = len(self.levels)
        rows = (*LevelConfig.rows_from(self.config), row)
        state = gathered_state_dict(cast(nn.Module, self))
        grown = self._filled(rows, state, lambda name: name.startswith(f"levels.{num_levels}."))
        cast(Level, grown.levels[-1]).zero_init_()
        return grown

    def to_video(
        self: T,
        num_frames: int,
        temporal_layers_per_block: Sequence[Sequence[int] | None] | None = None,
        temporal_rotary: bool = True,
    ) -> T:
        """A new model whose levels all take clips of `num_frames` frames, made of this model of pictures.

        It gets temporal attention whose branches start at zero: at first every frame is predicted as a picture of its
        own, and single frames (`(B, C, 1, H, W)`, or pictures) bit for bit as before. The old parameters keep their
        names, but not their positions among the new ones.

        Levels that reach more frames by resampling them come with `add_level` instead, before or after this.

        Args:
            num_frames: of every level, above 1.
            temporal_layers_per_block: temporal attention layers after each residual block, for each level (innermost
                first) and each of its resolutions, finest first; `None` for one wherever the channels are a multiple
                of 32 and the sides are even.
            temporal_rotary: rotary positions in the temporal attention. Without them it does not know the order of
                the frames.

        Raises:
            ValueError: this model has frames already, or the layers do not fit its levels.
        """
        old_rows = LevelConfig.rows_from(self.config)
        frames = tuple(row.num_frames for row in old_rows)
        if num_frames < 2 or set(frames) != {1}:
            raise ValueError(
                f"`to_video` turns a model of pictures into one of clips of 2 frames or more; got num_frames = "
                f"{num_frames} for a model whose levels have {frames} frames. More frames for the outermost level "
                "come with `add_level` and a row with `temporal_downsample`."
            )
        layers = temporal_layers_per_block
        if layers is None:
            layers = _everywhere(old_rows, self.config["sample_size"])
        if len(layers) != len(old_rows):
            raise ValueError(
                f"`temporal_layers_per_block` has {len(layers)} entries; expected one for each of the "
                f"{len(old_rows)} levels, innermost first."
            )
        rows = tuple(
            dataclasses.replace(
                row,
                num_frames=num_frames,
                temporal_layers_per_block=tuple(counts) if counts and any(counts) else None,
                temporal_rotary=temporal_rotary and any(counts or ()),
            )
            for row, counts in zip(old_rows, layers, strict=True)
        )
        if not any(row.temporal_layers_per_block for row in rows):
            raise ValueError(
                "No level would have temporal attention, so frames could not know of each other; it needs channels "
                f"that are a multiple of {TEMPORAL_HEAD_DIM} and even sides. Name `temporal_layers_per_block`."
            )
        state = gathered_state_dict(cast(nn.Module, self))
        video = self._filled(rows, state, lambda name: ".temporal_attentions." in name)
        with torch.no_grad():
            for module in cast(nn.Module, video).modules():
                if isinstance(module, TemporalAttention):
                    module.zero_init_()
        return video

    def inner_model(self: T, num_levels: int) -> T:
        """The inner `num_levels` levels as a model of their own, with copied weights.

        Raises:
            ValueError: the model does not have that many levels.
        """
        if not 1 <= num_levels <= len(self.levels):
            raise ValueError(
                f"Asked for the inner {num_levels} levels of a model with {len(self.levels)}; ask for 1 or more."
            )
        rows = LevelConfig.rows_from(self.config)[:num_levels]
        outside = tuple(f"levels.{index}." for index in range(num_levels, len(self.levels)))
        state = gathered_state_dict(cast(nn.Module, self))
        return self._filled(rows, {name: value for name, value in state.items() if not name.startswith(outside)})

    def without_sharing(self: T) -> T:
        """A new model whose levels have copies of the layers they shared: the same function, free to learn apart.

        The parameters of a level come before those of the next one, so they do not all keep their positions.
        """
        rows = tuple(
            dataclasses.replace(row, share_time_embedding=False, share_blocks=False)
            for row in LevelConfig.rows_from(self.config)
        )
        this = cast(nn.Module, self)
        return self._filled(rows, unshared_state_dict(this, gathered_state_dict(this)))

    def zero_init_(self) -> None:
        """Zero every level's output, adapters and residual branches: how the published models start training."""
        for level in self.levels:
            cast(Level, level).zero_init_()

    def _filled(
        self: T,
        rows: tuple[LevelConfig, ...],
        state: StateDict,
        is_new: Callable[[str], bool] = lambda name: False,
    ) -> T:
        """A model of these rows with the weights of `state`, on their device, in this model's dtype and mode; what it
        has besides is new.

        Raises:
            ValueError: `state` has other names than a plain model of this config.
        """
        this: Any = self
        device = common_device(state)
        # A model of shapes alone must not meet one with memory.
        with device if device.type == "meta" else contextlib.nullcontext():
            model: Any = self._of_rows(rows)
        missing, unexpected = model.load_state_dict(state, strict=False)
        if unexpected or not all(is_new(name) for name in missing):
            raise ValueError(
                "Only a plain model can grow, be opened or have its layers unshared: the parameters of this one are "
                f"not those of its config, e.g. {(unexpected or missing)[0]}. Fuse and unload LoRA adapters "
                "(`fuse_lora`, `unload_lora`) and unfuse projections first."
            )
        if model.dtype != this.dtype:
            model = model.to(dtype=this.dtype)
        return model.to(device=device).train(this.training)

    def _of_rows(self: T, rows: tuple[LevelConfig, ...]) -> T:
        """A new model of these rows and of this model's other settings."""
        # diffusers notes there which columns were left out here, and would leave them out again.
        settings = {name: value for name, value in self.config.items() if name != DEFAULTED_KEYS}
        return self.from_config({**settings, **LevelConfig.columns_from(rows)})


def _everywhere(rows: Sequence[LevelConfig], sample_size: int) -> list[tuple[int, ...]]:
    """One temporal layer at every resolution that can have one."""
    layers = []
    for row, pixels in zip(rows, level_sides(sample_size, rows), strict=True):
        side = pixels // row.patch_size
        layers.append(
            tuple(
                int(channels % TEMPORAL_HEAD_DIM == 0 and (side >> step) % 2 == 0)
                for step, channels in enumerate(row.block_out_channels)
            )
        )
    return layers
