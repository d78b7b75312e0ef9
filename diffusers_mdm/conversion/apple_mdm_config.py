# SPDX-License-Identifier: Apache-2.0
"""The configuration of the published implementation (ml-mdm), read into our model and scheduler configs.

Facts come from two places: the YAML file a model was trained with, and the trainer's arguments that are pickled in
the checkpoint (read as inert records). YAML wins where only it speaks, arguments fill what it leaves out, and a fact
that changes the model's output and on which they disagree is an error that names both.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from ..models.level_config import LevelConfig
from .untrusted_checkpoint import PickledObject

# Members of ml-mdm's enums by value, as its trainer pickles them.
ENUM_MEMBERS = {
    "ScheduleType": {0: "COSINE", 2: "DDPM", 3: "DEEPFLOYD"},
    "PredictionType": {3: "DDPM", 4: "DDIM", 5: "V_PREDICTION"},
    "ThresholdType": {0: "NONE", 1: "CLIP", 2: "DYNAMIC", 3: "DYNAMIC_IF"},
}
BETA_SCHEDULES = {"DEEPFLOYD": "squaredcos_cap_v2", "DDPM": "linear", "COSINE": "cosine_log_snr"}
# DDPM and DDIM both mean that the network predicts the noise.
PREDICTION_TYPES = {"V_PREDICTION": "v_prediction", "DDPM": "epsilon", "DDIM": "epsilon"}
# ml-mdm "Schedule / diffusion": quantile and largest bound of its two dynamic thresholds.
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
_REQUIRED = object()


def read_apple_config(path: str | Path) -> dict[str, Any]:
    """Return the contents of an ml-mdm model YAML.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is not YAML, or not a mapping with a `unet_config`.
    """
    import yaml  # the only part of the package that needs it outside training

    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"There is no config file {path}.")
    try:
        config = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} is not a YAML file: {error}") from error
    if not isinstance(config, dict) or not isinstance(config.get("unet_config"), dict):
        raise ValueError(f"{path} is not an ml-mdm model config: it has no mapping `unet_config`.")
    return config


class _Facts:
    """One mapping of the configuration as YAML and arguments tell it; either may be silent."""

    def __init__(self, path: str, yaml: Any, args: Any):
        self.path = path
        self.yaml: Mapping[str, Any] = yaml if isinstance(yaml, Mapping) else {}
        state = args.state if isinstance(args, PickledObject) else args
        self.args: Mapping[str, Any] = state if isinstance(state, Mapping) else {}

    def child(self, key: str) -> "_Facts":
        return _Facts(f"{self.path}.{key}" if self.path else key, self.yaml.get(key), self.args.get(key))

    def __bool__(self) -> bool:
        return bool(self.yaml or self.args)

    def get(self, key: str, parse: Callable[[Any], Any], default: Any = _REQUIRED, compare: bool = True) -> Any:
        """Return one parsed fact.

        Args:
            key: name within this mapping.
            parse: turns what either side wrote into a comparable value; its ValueErrors get the name prepended.
            default: value when both are silent; without one that is an error.
            compare: whether disagreement is an error (it changes the output) or YAML silently wins (it does not).
        """
        name = f"{self.path}.{key}" if self.path else key
        found = [self._parse(name, side[key], parse) for side in (self.yaml, self.args) if key in side]
        if not found:
            if default is _REQUIRED:
                raise ValueError(f"Neither the config file nor the checkpoint's arguments say `{name}`; add it.")
            return default
        if compare and len(found) == 2 and found[0] != found[1]:
            raise ValueError(
                f"`{name}` is {found[0]!r} in the config file but {found[1]!r} in the arguments that the checkpoint "
                "was trained with; use the config that belongs to this checkpoint."
            )
        return found[0]

    @staticmethod
    def _parse(name: str, value: Any, parse: Callable[[Any], Any]) -> Any:
        try:
            return parse(value)
        except (ValueError, TypeError) as error:
            raise ValueError(f"`{name}` cannot be used: {error}") from error


def _ints(value: Any) -> tuple[int, ...]:
    """Numbers written as a list or, as ml-mdm also accepts, as text: "256,512,768"."""
    items = value.split(",") if isinstance(value, str) else value
    if isinstance(items, int):
        items = [items]
    return tuple(int(item) for item in items if str(item).strip())


def _optional_ints(value: Any) -> tuple[int, ...] | None:
    return None if value is None else _ints(value)


def _number(value: Any) -> float:
    return float(value or 0)


def _optional_int(value: Any) -> int | None:
    return None if value is None or int(value) <= 0 else int(value)


def _enum(value: Any) -> str:
    """Member name of an enum, written as text in YAML and as a call of its class in the arguments."""
    if isinstance(value, PickledObject):
        member = value.args[0] if isinstance(value.args, tuple) and value.args else None
        value = ENUM_MEMBERS.get(value.name, {}).get(member) if isinstance(member, int) else None
    if not isinstance(value, str):
        raise ValueError("it is not the name of a member.")
    return value.upper()


def _micro_conditions(value: Any) -> tuple[tuple[str, float], ...]:
    """Pairs (key, default) of "scale:64,other:0"; nothing for None or empty text."""
    pairs = [pair.split(":") for pair in str(value or "").split(",") if pair.strip()]
    if any(len(pair) != 2 for pair in pairs):
        raise ValueError(f"expected 'key:default,key:default', got {value!r}.")
    return tuple((key.strip(), float(default)) for key, default in pairs)


def map_apple_config(
    state_dict: Mapping[str, torch.Tensor], yaml: Mapping[str, Any] | None, args: Any = None
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return (config of NestedUNetModel, config of MatryoshkaScheduler) for an ml-mdm checkpoint.

    Args:
        state_dict: the foreign state dict; only the shapes of its text projection are looked at. The text width
            stands nowhere else: the trainer overwrites `conditioning_feature_dim` before it pickles its arguments.
        yaml: contents of the model's YAML, or None.
        args: the checkpoint's `args` as `read_untrusted_checkpoint` gives them, or None.

    Raises:
        ValueError: facts that are missing, contradict each other, or belong to features that are not supported.
    """
    top = _Facts("", yaml, args)
    nodes = [top.child("unet_config")]
    while inner := nodes[-1].child("inner_config"):
        nodes.append(inner)
    if not nodes[0]:
        raise ValueError("Neither a config file nor arguments in the checkpoint describe the model; give its YAML.")
    # Ignored on purpose, because the published code ignores them too: `mixed_ratio` and `multi_res_weights` at top
    # level, `initialize_inner_with_pretrained`, `masked_cross_attention` and `num_lm_head_layers` of outer levels.
    rows: tuple[LevelConfig, ...] = ()
    for node in reversed(nodes):
        rows += (_level_row(node, rows),)
    innermost = nodes[-1]
    side = _base_side(top, rows)
    unet: dict[str, Any] = {"sample_size": side, **LevelConfig.columns_from(rows)}
    unet["time_embed_dim"] = _time_embed_dim(nodes)
    unet["num_text_layers"] = innermost.get("num_lm_head_layers", int, default=0)
    unet["use_cross_attention_mask"] = innermost.get("masked_cross_attention", bool)
    unet.update(_text_widths(state_dict, len(nodes)))
    bound = top.child("diffusion_config").get("model_output_scale", _number, default=0.0)
    # The published nested models ignore the bound.
    unet["output_bound"] = bound if bound and len(nodes) == 1 else None
    return unet, _scheduler_config(top.child("diffusion_config").child("sampler_config"), side, len(nodes))


def _level_row(node: _Facts, rows_inside: tuple[LevelConfig, ...]) -> LevelConfig:
    is_inner = not rows_inside
    _refuse_unsupported(node, is_inner)
    channels = node.get("resolution_channels", _ints)
    resnet = node.child("resnet_config")
    attention_levels = node.get("attention_levels", _ints)
    attention = _one_each(node, "num_attention_layers", len(channels))
    micros = node.get("micro_conditioning", _micro_conditions)
    return LevelConfig(
        block_out_channels=channels,
        layers_per_block=_one_each(node, "num_resnets_per_resolution", len(channels)),
        attention_layers_per_block=tuple(n if i in attention_levels else 0 for i, n in enumerate(attention)),
        # An outer level's middle is the level inside it, whatever its config says.
        has_mid_block=is_inner and not node.get("skip_mid_blocks", bool, compare=is_inner),
        has_attention_ffn=resnet.get("use_attention_ffn", bool, default=False),
        norm_num_groups=resnet.get("num_groups_norm", int, default=32),
        normalize_input=not is_inner and not node.get("skip_normalization", bool, default=False),
        dropout=resnet.get("dropout", _number, default=0.0, compare=False),
        micro_conditioning_keys=tuple(key for key, _ in micros),
        micro_conditioning_defaults=tuple(default for _, default in micros),
        **_frame_fields(node, rows_inside, len(channels)),
    )


def _frame_fields(node: _Facts, rows_inside: tuple[LevelConfig, ...], num_resolutions: int) -> dict[str, Any]:
    """What a level says about frames, as fields of its row (REFERENCE: Video)."""
    frames_inside = rows_inside[-1].num_frames if rows_inside else 1
    if not node.get("temporal_mode", bool, default=False):
        if frames_inside > 1:
            raise ValueError(
                f"`{node.path}.temporal_mode` is false around a video level: it would take all {frames_inside} frames "
                "for one picture. Levels around a video level need temporal_mode, and temporal_spatial_ds to add "
                "pixels."
            )
        return {}
    # The published code takes the whole ratio of the levels inside for the side of a square of frames.
    tiles = math.prod(_grid_ratio(row) for row in rows_inside[1:]) ** 2
    if not rows_inside or tiles != frames_inside:
        raise ValueError(
            f"`{node.path}.temporal_mode` is true, but the levels inside do not give it frames: of the nested levels "
            "inside a temporal level each must be temporal, without temporal_spatial_ds, and the innermost level must "
            "be a picture level."
        )
    layers = node.get("num_temporal_attention_layers", _optional_ints, default=None)
    if node.get("temporal_spatial_ds", bool, default=False):
        if any(layers or ()):
            raise ValueError(
                f"`{node.path}` has temporal_spatial_ds and temporal attention, which the published code cannot run "
                "either."
            )
        return {"num_frames": frames_inside, "tiled_adapters": frames_inside > 1}
    if num_resolutions % 2 == 0:
        raise ValueError(
            f"`{node.path}.resolution_channels` has {num_resolutions} entries; a level that resamples frames needs an "
            "odd number, so that its frames fill a square, and the published code cannot run others either."
        )
    has_layers = layers is not None and any(layers)
    return {
        "num_frames": frames_inside * 2 ** (num_resolutions - 1),
        "temporal_downsample": True,
        "temporal_layers_per_block": layers if has_layers else None,
        "temporal_rotary": has_layers and node.get("temporal_positional_encoding", bool, default=False),
        "tiled_adapters": frames_inside > 1,
    }


def _grid_ratio(row: LevelConfig) -> int:
    """Side of a level's picture, with frames tiled in a square, over that of the level inside."""
    return math.isqrt(row.frame_ratio) if row.temporal_downsample else row.ratio


def check_published_frames(rows: Sequence[LevelConfig]) -> None:
    """Raise a ValueError if a model has levels that the published code cannot express in its config."""
    for index, row in enumerate(rows):
        frames_inside = rows[index - 1].num_frames if index else 1
        tiles = math.prod(_grid_ratio(inner) for inner in rows[1:index]) ** 2
        if index == 0 and row.num_frames > 1:
            problem = "is the innermost and has several frames"
        elif row.temporal_layers_per_block is not None and not row.temporal_downsample:
            problem = "has temporal attention without temporal_downsample"
        elif row.temporal_downsample and math.isqrt(row.frame_ratio) ** 2 != row.frame_ratio:
            problem = f"has {row.frame_ratio} times the frames of the level inside, not a square number"
        elif row.temporal_downsample and frames_inside != tiles:
            problem = "resamples frames outside a level that adds pixels"
        elif frames_inside > 1 and not row.tiled_adapters:
            problem = "has adapters that see each frame alone"
        else:
            continue
        raise ValueError(f"The published code has no such video model: level {index} {problem}.")


def _one_each(node: _Facts, key: str, count: int) -> tuple[int, ...]:
    numbers = node.get(key, _ints)
    if len(numbers) == 1:
        numbers = numbers * count
    if len(numbers) != count:
        raise ValueError(f"`{node.path}.{key}` has {len(numbers)} entries; expected one for each of {count} channels.")
    return numbers


def _refuse_unsupported(node: _Facts, is_inner: bool) -> None:
    if is_inner and node.get("skip_cond_emb", bool, default=False):
        raise ValueError(f"`{node.path}.skip_cond_emb` is true on the innermost level, which alone reads the text.")
    if not is_inner and node.get("skip_inner_unet_input", bool, default=False):
        raise ValueError(f"`{node.path}.skip_inner_unet_input` is true, which the published code cannot run either.")


def _base_side(top: _Facts, rows: tuple[LevelConfig, ...]) -> int:
    """Side of level 0: that of the picture, or of the square of frames, divided by the ratio of every outer level."""
    side = top.get("sample_image_size", _optional_int, default=None, compare=False)
    side = side or top.child("reader_config").get("image_size", _optional_int, default=None, compare=False)
    if side is None:
        raise ValueError("Neither `sample_image_size` nor `reader_config.image_size` says how large pictures are.")
    ratio = math.prod(_grid_ratio(row) for row in rows[1:])
    if side % ratio:
        raise ValueError(f"`sample_image_size` is {side}, which the ratio {ratio} of its levels does not divide.")
    return side // ratio


def _time_embed_dim(nodes: list[_Facts]) -> int:
    """Width of the time embedding, which all levels must share because the text vector of the innermost is added."""
    widths = []
    for node in nodes:
        default = 4 * node.get("resolution_channels", _ints)[0]
        widths.append(node.get("temporal_dim", _optional_int, default=None) or default)
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


def _scheduler_config(sampler: _Facts, base_side: int, num_levels: int) -> dict[str, Any]:
    schedule = _known(sampler, "schedule_type", BETA_SCHEDULES)
    prediction = _known(sampler, "prediction_type", PREDICTION_TYPES)
    threshold = _known(sampler, "threshold_function", THRESHOLDS, default="CLIP", compare=False)
    shifted = sampler.get("schedule_shifted", bool, default=False)
    power = sampler.get("schedule_shifted_power", float, default=1.0)
    if sampler.get("rescale_schedule", _number, default=1.0) > 1:
        raise ValueError(f"`{sampler.path}.rescale_schedule` is above 1, which the published code cannot run either.")
    if sampler.get("rescale_signal", _number, default=0.0) not in (0.0, 1.0):
        raise ValueError(f"`{sampler.path}.rescale_signal` is not 1; models of rescaled signals are not supported.")
    return {
        "num_train_timesteps": sampler.get("num_diffusion_steps", int, default=1000),
        "beta_start": sampler.get("beta_start", float, default=1e-4),
        "beta_end": sampler.get("beta_end", float, default=0.02),
        "beta_schedule": BETA_SCHEDULES[schedule],
        "prediction_type": PREDICTION_TYPES[prediction],
        # One level needs neither shift nor rescaling; the defaults keep it ready to be grown.
        "shift_power": power if shifted or num_levels == 1 else 1.0,
        "level_scaling": "shift" if shifted or num_levels == 1 else "rescale",
        "base_sample_size": base_side,
        "timestep_spacing": "matryoshka",
        **THRESHOLDS[threshold],
    }


def _known(sampler: _Facts, key: str, table: Mapping[str, Any], default: Any = _REQUIRED, compare: bool = True) -> str:
    value = sampler.get(key, _enum, default=default, compare=compare)
    if value not in table:
        raise ValueError(f"`{sampler.path}.{key}` is {value!r}; expected one of {', '.join(table)}.")
    return value
