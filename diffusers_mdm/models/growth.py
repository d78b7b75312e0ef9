# SPDX-License-Identifier: Apache-2.0
"""Making larger and smaller models from a model: adding a level or frames, and extracting inner levels."""

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
    """Mixin with the methods of `NestedUNetModel` that make another model from it."""

    config: Any
    levels: nn.ModuleList
    from_config: Callable[..., Any]

    def add_level(self: T, level_config: LevelConfig) -> T:
        """Return a new model with one more level around this one; predictions of the inner levels remain exactly the
        same.

        Existing parameters keep their names and come first in the new model. The adapters, output layer and residual
        branches of the new level are initialised with zeros.

        Args:
            level_config: config of the new level. With `temporal_downsample` it has more frames than this model's
                outermost level, so an image model becomes the inner part of a video model.
        """
        num_levels = len(self.levels)
        level_configs = (*LevelConfig.levels_from(self.config), level_config)
        state = gathered_state_dict(cast(nn.Module, self))
        grown = self._filled(level_configs, state, lambda name: name.startswith(f"levels.{num_levels}."))
        cast(Level, grown.levels[-1]).zero_init_()
        return grown

    def to_video(
        self: T,
        num_frames: int,
        temporal_layers_per_block: Sequence[Sequence[int] | None] | None = None,
        temporal_rotary: bool = True,
    ) -> T:
        """Return a video model made from this image model, all of whose levels take clips of `num_frames` frames.

        It gets temporal attention with branches that are initialised with zeros: at first every frame is predicted
        like a separate image, and single frames (`(B, C, 1, H, W)`, or images) exactly as before. Existing parameters
        keep their names, but not their positions among the new ones.

        Levels that resample frames are added by `add_level` instead, before or after this.

        Args:
            num_frames: number of frames of every level, above 1.
            temporal_layers_per_block: temporal attention layers after each residual block, for each level (innermost
                first) and each of its resolutions, finest first; None for one wherever the channels are a multiple of
                32 and the sides are even.
            temporal_rotary: rotary positions in temporal attention. Without them it does not know the order of the
                frames.

        Raises:
            ValueError: this model already has frames, or the layers do not fit its levels.
        """
        old_configs = LevelConfig.levels_from(self.config)
        frames = tuple(level.num_frames for level in old_configs)
        if num_frames < 2 or set(frames) != {1}:
            raise ValueError(
                f"`to_video` turns an image model into a video model with 2 frames or more; got num_frames = "
                f"{num_frames} for a model whose levels have {frames} frames. To add frames to the outermost "
                f"level, use `add_level` with `temporal_downsample`."
            )
        layers = temporal_layers_per_block
        if layers is None:
            layers = _everywhere(old_configs, self.config["sample_size"])
        if len(layers) != len(old_configs):
            raise ValueError(
                f"`temporal_layers_per_block` has {len(layers)} entries; expected one for each of the "
                f"{len(old_configs)} levels, innermost first."
            )
        level_configs = tuple(
            dataclasses.replace(
                level,
                num_frames=num_frames,
                temporal_layers_per_block=tuple(counts) if counts and any(counts) else None,
                temporal_rotary=temporal_rotary and any(counts or ()),
            )
            for level, counts in zip(old_configs, layers, strict=True)
        )
        if not any(level.temporal_layers_per_block for level in level_configs):
            raise ValueError(
                "No level would have temporal attention, so frames could not exchange information; it needs "
                f"channels that are a multiple of {TEMPORAL_HEAD_DIM} and even sides. Pass "
                f"`temporal_layers_per_block`."
            )
        state = gathered_state_dict(cast(nn.Module, self))
        video = self._filled(level_configs, state, lambda name: ".temporal_attentions." in name)
        with torch.no_grad():
            for module in cast(nn.Module, video).modules():
                if isinstance(module, TemporalAttention):
                    module.zero_init_()
        return video

    def inner_model(self: T, num_levels: int) -> T:
        """Return the inner `num_levels` levels as a separate model, with copied weights.

        Raises:
            ValueError: the model does not have that many levels.
        """
        if not 1 <= num_levels <= len(self.levels):
            raise ValueError(
                f"Requested the inner {num_levels} levels of a model with {len(self.levels)}; request 1 to "
                f"{len(self.levels)}."
            )
        level_configs = LevelConfig.levels_from(self.config)[:num_levels]
        outside = tuple(f"levels.{index}." for index in range(num_levels, len(self.levels)))
        state = gathered_state_dict(cast(nn.Module, self))
        return self._filled(
            level_configs, {name: value for name, value in state.items() if not name.startswith(outside)}
        )

    def without_sharing(self: T) -> T:
        """Return a new model whose levels have copies of the layers they shared: the same function, but trained
        separately.

        The parameters of a level come before those of the next one, so not all of them keep their positions.
        """
        level_configs = tuple(
            dataclasses.replace(level, share_time_embedding=False, share_blocks=False)
            for level in LevelConfig.levels_from(self.config)
        )
        this = cast(nn.Module, self)
        return self._filled(level_configs, unshared_state_dict(this, gathered_state_dict(this)))

    def zero_init_(self) -> None:
        """Zero every level's output, adapters and residual branches, as the published models do before training."""
        for level in self.levels:
            cast(Level, level).zero_init_()

    def _filled(
        self: T,
        level_configs: tuple[LevelConfig, ...],
        state: StateDict,
        is_new: Callable[[str], bool] = lambda name: False,
    ) -> T:
        """Return a model with these levels and the weights of `state`, on their device, in this model's dtype and
        mode.

        Parameters that are not in `state` keep their initial values.

        Raises:
            ValueError: `state` has other names than a model with this config.
        """
        this: Any = self
        device = common_device(state)
        # A model on the meta device must not be mixed with one that has memory.
        with device if device.type == "meta" else contextlib.nullcontext():
            model: Any = self._of_levels(level_configs)
        missing, unexpected = model.load_state_dict(state, strict=False)
        if unexpected or not all(is_new(name) for name in missing):
            raise ValueError(
                "Levels or frames can be added, and levels extracted, only for a model whose parameters are those "
                f"of its config, unlike e.g. {(unexpected or missing)[0]}. Fuse and unload LoRA adapters "
                "(`fuse_lora`, `unload_lora`) and unfuse projections first."
            )
        if model.dtype != this.dtype:
            model = model.to(dtype=this.dtype)
        return model.to(device=device).train(this.training)

    def _of_levels(self: T, level_configs: tuple[LevelConfig, ...]) -> T:
        """Return a new model with these levels and this model's other settings."""
        # This key lists the settings that were not passed; diffusers would omit them again.
        settings = {name: value for name, value in self.config.items() if name != DEFAULTED_KEYS}
        return self.from_config({**settings, **LevelConfig.columns_from(level_configs)})


def _everywhere(level_configs: Sequence[LevelConfig], sample_size: int) -> list[tuple[int, ...]]:
    """Return one temporal layer for every resolution that can have one."""
    layers = []
    for level_config, pixels in zip(level_configs, level_sides(sample_size, level_configs), strict=True):
        side = pixels // level_config.patch_size
        layers.append(
            tuple(
                int(channels % TEMPORAL_HEAD_DIM == 0 and (side >> step) % 2 == 0)
                for step, channels in enumerate(level_config.block_out_channels)
            )
        )
    return layers
