# SPDX-License-Identifier: Apache-2.0
"""Mapping of configs of the published implementation (ml-mdm) to configs of our model and scheduler.

Values come from two places: the YAML file that a model was trained with, and the trainer's arguments that are pickled
in the checkpoint (read as inert records). Arguments fill in what the YAML omits. If the two disagree on a value that
changes the model's output, that is an error that names both; otherwise the YAML wins.
"""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from ..checked_values import describe
from ..config_reading import read_yaml
from ..models.level_config import LevelConfig
from .config_facts import (
    REQUIRED,
    Facts,
    count,
    counts,
    flag,
    member,
    micro_conditions,
    number,
    optional_counts,
    optional_number,
    optional_positive,
    positive,
)
from .state_dict_table import MAX_LEVELS

BETA_SCHEDULES = {"DEEPFLOYD": "squaredcos_cap_v2", "DDPM": "linear", "COSINE": "cosine_log_snr"}
# DDPM and DDIM both mean that the network predicts the noise.
PREDICTION_TYPES = {"V_PREDICTION": "v_prediction", "DDPM": "epsilon", "DDIM": "epsilon"}
# Quantile and upper bound of ml-mdm's two kinds of dynamic thresholding.
THRESHOLDS: dict[str, dict[str, Any]] = {
    "NONE": {"clip_sample": False, "thresholding": False},
    "CLIP": {"clip_sample": True, "clip_sample_range": 1.0, "thresholding": False},
    "DYNAMIC": {
        "clip_sample": False,
        "thresholding": True,
        "dynamic_thresholding_ratio": 0.995,
        "sample_max_value": 100.0,
    },
    "DYNAMIC_IF": {
        "clip_sample": False,
        "thresholding": True,
        "dynamic_thresholding_ratio": 0.95,
        "sample_max_value": 1.5,
    },
}


MAX_TIMESTEPS = 1_000_000  # the scheduler stores a number for each timestep


def read_apple_config(path: str | Path) -> dict[str, Any]:
    """Return the contents of an ml-mdm model YAML.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file is not YAML of plain values, or not a mapping with a `unet_config`.
    """
    config = read_yaml(path)
    if not isinstance(config, dict) or not isinstance(config.get("unet_config"), dict):
        raise ValueError(f"{path} is not an ml-mdm model config: it has no mapping `unet_config`.")
    return config


def map_apple_config(
    state_dict: Mapping[str, torch.Tensor], yaml: Mapping[str, Any] | None, args: Any = None
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return (config of NestedUNetModel, config of MatryoshkaScheduler) for an ml-mdm checkpoint.

    Args:
        state_dict: the foreign state dict; only the shape of its text projection is used. It is the only source of the
            text width: the trainer overwrites `conditioning_feature_dim` before it pickles its arguments.
        yaml: contents of the model's YAML config, or None.
        args: the checkpoint's `args` from `read_untrusted_checkpoint`, or None.

    Raises:
        ValueError: values are missing, contradict each other, or belong to features that are not supported.
    """
    top = Facts("", yaml, args)
    nodes = [top.child("unet_config")]
    while inner := nodes[-1].child("inner_config"):
        nodes.append(inner)
        if len(nodes) > MAX_LEVELS:
            raise ValueError(f"`unet_config` nests more than {MAX_LEVELS} levels; it may contain itself.")
    if not nodes[0]:
        raise ValueError(
            "Neither a config file nor arguments in the checkpoint describe the model; pass its YAML config."
        )
    # Ignored on purpose, because the published code ignores them too: `mixed_ratio` and `multi_res_weights` at the top
    # level, `initialize_inner_with_pretrained`, `masked_cross_attention` and `num_lm_head_layers` of outer levels.
    level_configs: tuple[LevelConfig, ...] = ()
    for node in reversed(nodes):
        level_configs += (_level_config(node, level_configs),)
    innermost = nodes[-1]
    side = _base_side(top, level_configs)
    unet: dict[str, Any] = {"sample_size": side, **LevelConfig.columns_from(level_configs)}
    unet["time_embed_dim"] = _time_embed_dim(nodes)
    unet["num_text_layers"] = innermost.get("num_lm_head_layers", count, default=0)
    unet["use_cross_attention_mask"] = innermost.get("masked_cross_attention", flag)
    unet.update(_text_widths(state_dict, len(nodes)))
    bound = top.child("diffusion_config").get("model_output_scale", optional_number, default=0.0)
    # The published nested models ignore the upper bound.
    unet["output_bound"] = bound if bound and len(nodes) == 1 else None
    return unet, _scheduler_config(top.child("diffusion_config").child("sampler_config"), side, len(nodes))


def _level_config(node: Facts, configs_inside: tuple[LevelConfig, ...]) -> LevelConfig:
    is_inner = not configs_inside
    _refuse_unsupported(node, is_inner)
    channels = node.get("resolution_channels", counts)
    resnet = node.child("resnet_config")
    attention_levels = node.get("attention_levels", counts)
    attention = _one_each(node, "num_attention_layers", len(channels))
    micros = node.get("micro_conditioning", micro_conditions)
    return LevelConfig(
        block_out_channels=channels,
        layers_per_block=_one_each(node, "num_resnets_per_resolution", len(channels)),
        attention_layers_per_block=tuple(n if i in attention_levels else 0 for i, n in enumerate(attention)),
        # The middle of an outer level is the level inside it, whatever its config says.
        has_mid_block=is_inner and not node.get("skip_mid_blocks", flag, compare=is_inner),
        has_attention_ffn=resnet.get("use_attention_ffn", flag, default=False),
        norm_num_groups=resnet.get("num_groups_norm", positive, default=32),
        normalize_input=not is_inner and not node.get("skip_normalization", flag, default=False),
        dropout=resnet.get("dropout", optional_number, default=0.0, compare=False),
        micro_conditioning_keys=tuple(key for key, _ in micros),
        micro_conditioning_defaults=tuple(default for _, default in micros),
        **_frame_fields(node, configs_inside, len(channels)),
    )


def _frame_fields(node: Facts, configs_inside: tuple[LevelConfig, ...], num_resolutions: int) -> dict[str, Any]:
    """Return the fields of `LevelConfig` about frames."""
    frames_inside = configs_inside[-1].num_frames if configs_inside else 1
    if not node.get("temporal_mode", flag, default=False):
        if frames_inside > 1:
            raise ValueError(
                f"`{node.path}.temporal_mode` is false around a video level: it would treat all {frames_inside} "
                f"frames as one image. Levels around a video level need temporal_mode, and temporal_spatial_ds to "
                f"add pixels."
            )
        return {}
    # The published code takes the whole size ratio of the levels inside as the side of a square of frames.
    tiles = math.prod(_grid_ratio(level) for level in configs_inside[1:]) ** 2
    if not configs_inside or tiles != frames_inside:
        raise ValueError(
            f"`{node.path}.temporal_mode` is true, but the levels inside do not match: every nested level inside a "
            f"temporal level must be temporal too, without temporal_spatial_ds, and the innermost level must be an "
            f"image level."
        )
    layers = node.get("num_temporal_attention_layers", optional_counts, default=None)
    if node.get("temporal_spatial_ds", flag, default=False):
        if any(layers or ()):
            raise ValueError(
                f"`{node.path}` has temporal_spatial_ds and temporal attention, which the published code cannot run "
                "either."
            )
        return {"num_frames": frames_inside, "tiled_adapters": frames_inside > 1}
    if num_resolutions % 2 == 0:
        raise ValueError(
            f"`{node.path}.resolution_channels` has {num_resolutions} entries; a level that resamples frames needs "
            f"an odd number, so that its frames fill a square; the published code cannot run others either."
        )
    has_layers = layers is not None and any(layers)
    return {
        "num_frames": frames_inside * 2 ** (num_resolutions - 1),
        "temporal_downsample": True,
        "temporal_layers_per_block": layers if has_layers else None,
        "temporal_rotary": has_layers and node.get("temporal_positional_encoding", flag, default=False),
        "tiled_adapters": frames_inside > 1,
    }


def _grid_ratio(level_config: LevelConfig) -> int:
    """Return the ratio of a level's side to that of the level inside, with frames tiled into a square."""
    return math.isqrt(level_config.frame_ratio) if level_config.temporal_downsample else level_config.ratio


def check_published_frames(level_configs: Sequence[LevelConfig]) -> None:
    """Raise a ValueError if a model has levels that a config of the published code cannot describe."""
    for index, level_config in enumerate(level_configs):
        if level_config.patch_size > 1:
            raise ValueError(
                f"The published code has no patches: level {index} has patch_size {level_config.patch_size}, and only "
                "models with 1 at every level can be converted."
            )
        frames_inside = level_configs[index - 1].num_frames if index else 1
        tiles = math.prod(_grid_ratio(inner) for inner in level_configs[1:index]) ** 2
        if index == 0 and level_config.num_frames > 1:
            problem = "is the innermost and has several frames"
        elif level_config.temporal_layers_per_block is not None and not level_config.temporal_downsample:
            problem = "has temporal attention without temporal_downsample"
        elif (
            level_config.temporal_downsample and math.isqrt(level_config.frame_ratio) ** 2 != level_config.frame_ratio
        ):
            problem = (
                f"has {level_config.frame_ratio} times the frames of the level inside, which is not a square number"
            )
        elif level_config.temporal_downsample and frames_inside != tiles:
            problem = "resamples frames around a level that adds pixels"
        elif frames_inside > 1 and not level_config.tiled_adapters:
            problem = "has adapters that process each frame separately"
        else:
            continue
        raise ValueError(f"The published code has no such video model: level {index} {problem}.")


def _one_each(node: Facts, key: str, num_resolutions: int) -> tuple[int, ...]:
    numbers = node.get(key, counts)
    if len(numbers) == 1:
        numbers = numbers * num_resolutions
    if len(numbers) != num_resolutions:
        raise ValueError(
            f"`{node.path}.{key}` has {len(numbers)} entries; expected one for each of {num_resolutions} channels."
        )
    return numbers


def _refuse_unsupported(node: Facts, is_inner: bool) -> None:
    if is_inner and node.get("skip_cond_emb", flag, default=False):
        raise ValueError(
            f"`{node.path}.skip_cond_emb` is true on the innermost level, the only one that receives the text."
        )
    if not is_inner and node.get("skip_inner_unet_input", flag, default=False):
        raise ValueError(f"`{node.path}.skip_inner_unet_input` is true, which the published code cannot run either.")


def _base_side(top: Facts, level_configs: tuple[LevelConfig, ...]) -> int:
    """Return the side of level 0: the side of the image (or of the square of frames) divided by the ratios of all
    outer levels.
    """
    side = top.get("sample_image_size", optional_positive, default=None, compare=False)
    side = side or top.child("reader_config").get("image_size", optional_positive, default=None, compare=False)
    if side is None:
        raise ValueError("Neither `sample_image_size` nor `reader_config.image_size` gives the size of the images.")
    ratio = math.prod(_grid_ratio(level) for level in level_configs[1:])
    if side % ratio:
        raise ValueError(f"`sample_image_size` is {side}, which is not a multiple of the ratio {ratio} of its levels.")
    return side // ratio


def _time_embed_dim(nodes: list[Facts]) -> int:
    """Return the width of the time embedding, which must be equal at all levels, since the innermost level's text
    vector is added to each.
    """
    widths = []
    for node in nodes:
        default = 4 * node.get("resolution_channels", counts)[0]
        widths.append(node.get("temporal_dim", optional_positive, default=None) or default)
    if len(set(widths)) > 1:
        raise ValueError(f"The levels have `temporal_dim` {widths} (outermost first); all must be equal.")
    return widths[0]


def _text_widths(state_dict: Mapping[str, torch.Tensor], num_levels: int) -> dict[str, int | None]:
    prefix = "inner_unet." * (num_levels - 1)
    projection, pooled = state_dict.get(f"{prefix}lm_proj.weight"), state_dict.get(f"{prefix}cond_emb.weight")
    if pooled is None:
        raise ValueError(
            f"The checkpoint has no {prefix}cond_emb.weight: either its text conditioning is missing or the config, "
            f"which has {num_levels} levels, belongs to another model."
        )
    return {
        "encoder_hid_dim": None if projection is None else projection.shape[1],
        "cross_attention_dim": pooled.shape[1],
    }


def _scheduler_config(sampler: Facts, base_side: int, num_levels: int) -> dict[str, Any]:
    schedule = _known(sampler, "schedule_type", BETA_SCHEDULES)
    prediction = _known(sampler, "prediction_type", PREDICTION_TYPES)
    threshold = _known(sampler, "threshold_function", THRESHOLDS, default="CLIP", compare=False)
    shifted = sampler.get("schedule_shifted", flag, default=False)
    power = sampler.get("schedule_shifted_power", number, default=1.0)
    if sampler.get("rescale_schedule", optional_number, default=1.0) > 1:
        raise ValueError(f"`{sampler.path}.rescale_schedule` is above 1, which the published code cannot run either.")
    if sampler.get("rescale_signal", optional_number, default=0.0) not in (0.0, 1.0):
        raise ValueError(f"`{sampler.path}.rescale_signal` is not 1; models with rescaled signals are not supported.")
    steps = sampler.get("num_diffusion_steps", positive, default=1000)
    if steps > MAX_TIMESTEPS:
        raise ValueError(f"`{sampler.path}.num_diffusion_steps` is {steps}; expected at most {MAX_TIMESTEPS}.")
    return {
        "num_train_timesteps": steps,
        "beta_start": sampler.get("beta_start", number, default=1e-4),
        "beta_end": sampler.get("beta_end", number, default=0.02),
        "beta_schedule": BETA_SCHEDULES[schedule],
        "prediction_type": PREDICTION_TYPES[prediction],
        # A single level needs neither shift nor rescaling; with the defaults an outer level can be added later.
        "shift_power": power if shifted or num_levels == 1 else 1.0,
        "level_scaling": "shift" if shifted or num_levels == 1 else "rescale",
        "base_sample_size": base_side,
        "timestep_spacing": "matryoshka",
        **THRESHOLDS[threshold],
    }


def _known(sampler: Facts, key: str, table: Mapping[str, Any], default: Any = REQUIRED, compare: bool = True) -> str:
    value = sampler.get(key, member, default=default, compare=compare)
    if value not in table:
        raise ValueError(f"`{sampler.path}.{key}` is {describe(value)}; expected one of {', '.join(table)}.")
    return value
