# SPDX-License-Identifier: Apache-2.0
"""The config of each level of a `NestedUNetModel`.

The saved config of a model has one list per setting, with one entry per level (the columns of a table); code works
with one `LevelConfig` per level (its rows).
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any

from ..checked_values import check_flag, check_number, check_whole_number, describe
from .frames import frame_grid_side

# Far larger than any model that fits on a machine; a larger number is a mistake that would only be noticed when memory
# runs out.
MAX_LEVELS = 16
MAX_RESOLUTIONS = 16
MAX_LAYERS = 1024
MAX_CHANNELS = 65536
MAX_FRAMES = 65536
MAX_PATCH = 256
# The micro-condition of models for super-resolution: how noisy the small image is, 0 to 1.
NOISE_LEVEL = "noise_level"

# Channels per head of temporal attention, fixed in ml-mdm.
TEMPORAL_HEAD_DIM = 32
# Settings of a shared layer besides the shapes of its parameters.
_SETTINGS_OF_SHARED_LAYERS = ("norm_num_groups", "dropout")

# Columns that can be missing from a config (as in older ones) or None, with the value that all levels then have.
_OPTIONAL_COLUMNS: dict[str, Any] = {
    "patch_size": 1,
    "num_frames": 1,
    "temporal_layers_per_block": None,
    "temporal_downsample": False,
    "temporal_rotary": False,
    "tiled_adapters": False,
    "share_time_embedding": False,
    "share_blocks": False,
}

_FLAGS = (
    "has_mid_block",
    "has_attention_ffn",
    "normalize_input",
    "temporal_downsample",
    "temporal_rotary",
    "tiled_adapters",
    "share_time_embedding",
    "share_blocks",
)


@dataclasses.dataclass(frozen=True)
class LevelConfig:
    """The config of one level. Every field is a column of the model's config.

    Args:
        block_out_channels: channels at each of the level's own resolutions, finest first. With n entries the level is
            2^(n-1) times larger than the level inside it, in side or (`temporal_downsample`) in frames; the side is
            also larger by the ratio of the `patch_size` of both levels.
        layers_per_block: residual layers at each resolution of the encoder (one more in the decoder).
        attention_layers_per_block: spatial attention layers after each residual layer at each resolution; 0 for none.
        has_mid_block: whether there is a middle block (residual, attention, residual) at the coarsest resolution. Only
            level 0 can have one: the middle of an outer level is the level inside it.
        has_attention_ffn: whether each attention layer is followed by a feed-forward part of 4x width.
        norm_num_groups: groups of every group norm outside attention.
        normalize_input: divide the input by its standard deviation (per sample, unbiased). Outer levels only.
        dropout: dropout probability in the residual layers.
        micro_conditioning_keys: names of the scalars that are embedded in addition to the timestep, e.g. ("scale",).
        micro_conditioning_defaults: value of each if it is not given; for "scale" also its upper bound.
        patch_size: p: the level works on patches of p x p pixels (space to depth before its first layer, depth to
            space after its last), which reduces the computation at high resolution by p^2; 1 in the published models.
        num_frames: frames per sample; 1 for images.
        temporal_layers_per_block: temporal attention layers after each residual layer at each resolution; None for
            none. Channels there must be multiples of 32, and sides even.
        temporal_downsample: resample frames instead of pixels between the level's resolutions, so that the level
            inside has fewer frames of the same size. Outer levels only.
        temporal_rotary: whether temporal attention has rotary positions.
        tiled_adapters: whether the adapters to and from the level inside work on a clip's frames tiled in one image,
            so that their convolutions cross frame borders, like the published video code; for models converted from
            it.
        share_time_embedding: embed timestep and micro-conditioning with the weights of the level inside. Outer levels
            only.
        share_blocks: use for every residual, attention and resampling layer the weights of its counterpart in the
            level inside, if their shapes agree (see `weight_sharing.share_layers`). Outer levels only.
    """

    block_out_channels: tuple[int, ...]
    layers_per_block: tuple[int, ...]
    attention_layers_per_block: tuple[int, ...]
    has_mid_block: bool = False
    has_attention_ffn: bool = False
    norm_num_groups: int = 32
    normalize_input: bool = False
    dropout: float = 0.0
    micro_conditioning_keys: tuple[str, ...] = ("scale",)
    micro_conditioning_defaults: tuple[float, ...] = (64.0,)
    patch_size: int = 1
    num_frames: int = 1
    temporal_layers_per_block: tuple[int, ...] | None = None
    temporal_downsample: bool = False
    temporal_rotary: bool = False
    tiled_adapters: bool = False
    share_time_embedding: bool = False
    share_blocks: bool = False

    @property
    def ratio(self) -> int:
        """Side of the finest features relative to the coarsest, which have the side of the finest of the level
        inside.
        """
        return 1 if self.temporal_downsample else 2 ** (len(self.block_out_channels) - 1)

    @property
    def frame_ratio(self) -> int:
        """The number of frames of this level relative to the level inside it."""
        return 2 ** (len(self.block_out_channels) - 1) if self.temporal_downsample else 1

    @classmethod
    def levels_from(cls, config: Mapping[str, Any]) -> tuple[LevelConfig, ...]:
        """Convert a model's config to one `LevelConfig` per level, innermost first.

        Args:
            config: config of a model in memory, or a saved one. Columns that an older version did not have take the
                current default.

        Raises:
            ValueError: a column is missing, columns differ in length, or the settings of a level are contradictory.
        """
        names = [field.name for field in dataclasses.fields(cls)]
        num_levels = _number_of_levels(config)
        columns = {name: _column(config, name, num_levels) for name in names}
        levels = tuple(
            cls(**{name: _frozen(columns[name][index], f"{name}[{index}]") for name in names})
            for index in range(num_levels)
        )
        for index, level in enumerate(levels):
            level.check(index)
            _check_sharing(level, levels[index - 1] if index else None, index)
            if index > 0:
                _check_sides(level, levels[index - 1], index)
                _check_frames(level, levels[index - 1], index)
        return levels

    @classmethod
    def columns_from(cls, levels: tuple[LevelConfig, ...]) -> dict[str, Any]:
        """Return one tuple per field, innermost level first: the inverse of `levels_from`."""
        columns: dict[str, Any] = {}
        for field in dataclasses.fields(cls):
            column = tuple(getattr(level, field.name) for level in levels)
            is_unused = all(entry == _OPTIONAL_COLUMNS.get(field.name, ...) for entry in column)
            columns[field.name] = None if is_unused else column
        return columns

    def check(self, index: int) -> None:
        """Raise a ValueError if settings of this level, with number `index`, are invalid or contradictory."""
        _check_shapes(self, index)
        _check_values(self, index)
        _check_divisibility(self, index)
        _check_temporal(self, index)
        if index == 0 and self.normalize_input:
            raise ValueError(
                "normalize_input[0] is True, but the innermost level is never normalised; set it to False."
            )
        if index > 0 and self.has_mid_block:
            raise ValueError(
                f"has_mid_block[{index}] is True, but the middle of an outer level is the level inside it; set it to "
                "False."
            )


def _number_of_levels(config: Mapping[str, Any]) -> int:
    channels = config.get("block_out_channels")
    if not isinstance(channels, (list, tuple)) or not 1 <= len(channels) <= MAX_LEVELS:
        raise ValueError(
            "`block_out_channels` must list the channels of every level, innermost first, each as a list with one "
            f"entry for each resolution, e.g. [[64, 128], [32, 64]], for at most {MAX_LEVELS} levels; got "
            f"{describe(channels)}."
        )
    return len(channels)


def _column(config: Mapping[str, Any], name: str, num_levels: int) -> Sequence[Any]:
    """Return a column with one entry per level, or the default of an optional column that the config does not have."""
    column = config.get(name)
    if column is None and name in _OPTIONAL_COLUMNS:
        return (_OPTIONAL_COLUMNS[name],) * num_levels
    if column is None and name not in config:
        raise ValueError(
            f"The config of the model lacks `{name}`; expected one entry for each of the {num_levels} levels in "
            "`block_out_channels` (innermost first). Is this the config.json of a NestedUNetModel?"
        )
    if not isinstance(column, (list, tuple)) or len(column) != num_levels:
        raise ValueError(
            f"`{name}` must have one entry for each of the {num_levels} levels in `block_out_channels` "
            f"(innermost first), got {describe(column)}."
        )
    return column


def _frozen(entry: Any, name: str) -> Any:
    """Convert lists (as in JSON) to tuples; mappings and nested lists are refused."""
    if isinstance(entry, (list, tuple)):
        if any(isinstance(item, (list, tuple, Mapping)) for item in entry):
            raise ValueError(f"{name} = {describe(entry)} is nested too deeply; expected plain values.")
        return tuple(entry)
    if isinstance(entry, Mapping):
        raise ValueError(f"{name} = {describe(entry)} is a mapping; expected plain values.")
    return entry


def _check_shapes(config: LevelConfig, index: int) -> None:
    """Check that lists are lists, with the right lengths."""
    channels = config.block_out_channels
    num_resolutions = len(channels) if isinstance(channels, tuple) else 0
    if not 1 <= num_resolutions <= MAX_RESOLUTIONS:
        raise ValueError(
            f"block_out_channels[{index}] must list the channels of each resolution, at most {MAX_RESOLUTIONS} of "
            f"them; got {describe(channels)}."
        )
    for name in ("layers_per_block", "attention_layers_per_block", "temporal_layers_per_block"):
        entry = getattr(config, name)
        if entry is None and name == "temporal_layers_per_block":
            continue
        if not isinstance(entry, tuple) or len(entry) != num_resolutions:
            raise ValueError(
                f"{name}[{index}] must have one entry for each of the {num_resolutions} resolutions of level {index}, "
                f"got {describe(entry)}."
            )
    keys, defaults = config.micro_conditioning_keys, config.micro_conditioning_defaults
    if not isinstance(keys, tuple) or not isinstance(defaults, tuple) or len(keys) != len(defaults):
        raise ValueError(
            f"micro_conditioning_keys[{index}] = {describe(keys)} and micro_conditioning_defaults[{index}] = "
            f"{describe(defaults)} must pair up: one default for each key."
        )


def _check_values(config: LevelConfig, index: int) -> None:
    """Check that entries are numbers, flags or names, and in a sensible range."""
    for channels in config.block_out_channels:
        check_whole_number(channels, f"block_out_channels[{index}]", 1, MAX_CHANNELS)
    for layers in config.layers_per_block:
        check_whole_number(layers, f"layers_per_block[{index}]", 1, MAX_LAYERS)
    for layers in config.attention_layers_per_block:
        check_whole_number(layers, f"attention_layers_per_block[{index}]", 0, MAX_LAYERS, "Use 0 for none.")
    for layers in config.temporal_layers_per_block or ():
        check_whole_number(layers, f"temporal_layers_per_block[{index}]", 0, MAX_LAYERS, "Use 0 for none.")
    check_whole_number(config.patch_size, f"patch_size[{index}]", 1, MAX_PATCH)
    check_whole_number(config.num_frames, f"num_frames[{index}]", 1, MAX_FRAMES, "An image model has 1.")
    check_whole_number(config.norm_num_groups, f"norm_num_groups[{index}]", 1, MAX_CHANNELS)
    for name in _FLAGS:
        check_flag(getattr(config, name), f"{name}[{index}]")
    check_number(config.dropout, f"dropout[{index}]", 0.0, 1.0)
    for key, default in zip(config.micro_conditioning_keys, config.micro_conditioning_defaults, strict=True):
        if not isinstance(key, str) or not key.isidentifier() or config.micro_conditioning_keys.count(key) > 1:
            raise ValueError(
                f"micro_conditioning_keys[{index}] has {describe(key)}; expected names such as 'scale', without "
                f"duplicates."
            )
        # A scale is divided by its default.
        is_scale = key == "scale"
        check_number(default, f"micro_conditioning_defaults[{index}]", 0.0 if is_scale else -math.inf, above=is_scale)


def _check_divisibility(config: LevelConfig, index: int) -> None:
    bad = [channels for channels in config.block_out_channels if channels % config.norm_num_groups]
    if bad:
        raise ValueError(
            f"block_out_channels[{index}] has {bad}, not divisible by norm_num_groups[{index}] = "
            f"{config.norm_num_groups}; change one of them."
        )
    if config.dropout >= 1.0:
        raise ValueError(f"dropout[{index}] = {config.dropout}; expected a probability in [0, 1).")


def _check_temporal(config: LevelConfig, index: int) -> None:
    """Check that the temporal settings of level `index` are consistent with each other and its other settings."""
    layers = config.temporal_layers_per_block or ()
    if any(layers) and config.num_frames == 1:
        raise ValueError(
            f"temporal_layers_per_block[{index}] = {layers}, but num_frames[{index}] is 1: temporal attention "
            f"needs several frames. Set num_frames, or omit the temporal layers."
        )
    narrow = [
        channels
        for channels, count in zip(config.block_out_channels, layers, strict=False)
        if count and channels % TEMPORAL_HEAD_DIM
    ]
    if narrow:
        raise ValueError(
            f"temporal_layers_per_block[{index}] = {layers} puts temporal attention at {narrow} channels; its heads "
            f"have {TEMPORAL_HEAD_DIM} each, so block_out_channels[{index}] must be multiples of that there. Use 0 "
            "layers elsewhere."
        )
    if config.temporal_rotary and not any(layers):
        raise ValueError(
            f"temporal_rotary[{index}] is True, but temporal_layers_per_block[{index}] = "
            f"{config.temporal_layers_per_block} has no temporal attention that would use the positions."
        )
    if index == 0 and (config.temporal_downsample or config.tiled_adapters):
        raise ValueError(
            "temporal_downsample[0] and tiled_adapters[0] must be False: they are about the level inside, and level 0 "
            "has none."
        )


def _check_sides(config: LevelConfig, inner: LevelConfig, index: int) -> None:
    """Check that a level is a whole number of times larger than the level inside it."""
    patches = f"patch_size[{index}] = {config.patch_size} and patch_size[{index - 1}] = {inner.patch_size}"
    if config.temporal_downsample and config.patch_size != inner.patch_size:
        raise ValueError(
            f"temporal_downsample[{index}] is True, so level {index} has the side of the level inside it, but "
            f"{patches}; make them equal."
        )
    if config.ratio * config.patch_size % inner.patch_size:
        raise ValueError(
            f"{patches}, with {len(config.block_out_channels)} resolutions in block_out_channels[{index}], do not "
            f"make level {index} a whole number of times larger than the level inside it."
        )
    if config.frame_ratio == 1 and config.ratio * config.patch_size == inner.patch_size:
        raise ValueError(
            f"block_out_channels[{index}] = {config.block_out_channels} has too few resolutions: with {patches}, "
            f"level {index} would be no larger than the level inside it; give one more, or a larger patch_size."
        )


def _check_frames(config: LevelConfig, inner: LevelConfig, index: int) -> None:
    """Check that the number of frames of level `index` agrees with the level inside it."""
    expected = inner.num_frames * config.frame_ratio
    if config.num_frames != expected:
        how = (
            f"temporal_downsample[{index}] with {len(config.block_out_channels)} resolutions makes "
            f"{config.frame_ratio} times as many"
            if config.temporal_downsample
            else f"without temporal_downsample[{index}] it has as many"
        )
        raise ValueError(
            f"num_frames[{index}] = {config.num_frames}, but level {index - 1} has {inner.num_frames} and {how}: "
            f"expected {expected}."
        )
    if config.tiled_adapters:
        try:
            frame_grid_side(inner.num_frames)
        except ValueError as error:
            raise ValueError(
                f"tiled_adapters[{index}] is True, but level {index - 1} has {inner.num_frames} frames, which do not "
                "fill a square of tiles; set it to False."
            ) from error


def _check_sharing(config: LevelConfig, inner: LevelConfig | None, index: int) -> None:
    """Check that level `index` can share layers with the level inside it."""
    if inner is None:
        if config.share_time_embedding or config.share_blocks:
            raise ValueError(
                "share_time_embedding[0] and share_blocks[0] must be False: they are about the level inside, and "
                "level 0 has none."
            )
        return
    if not config.share_blocks:
        return
    for name in _SETTINGS_OF_SHARED_LAYERS:
        ours, theirs = getattr(config, name), getattr(inner, name)
        if ours != theirs:
            raise ValueError(
                f"share_blocks[{index}] is True, but {name}[{index}] = {ours} and {name}[{index - 1}] = {theirs}; "
                "shared layers have the same settings, so make them equal."
            )
