# SPDX-License-Identifier: Apache-2.0
"""Conversion of checkpoints of the MDM community pipeline in diffusers' examples.

Such a checkpoint is a U-Net folder (`config.json` and safetensors) of a model that computes the same function as the
published one. Its names are similar to ours, with these differences: the level inside another is `inner_unet`;
attention keeps q|k|v and the text's k|v fused (`attn1.to_qkv`, `attn2.to_kv`); and layer b after residual block j is
`attentions.j.transformer_blocks.b` instead of one running number.
"""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file

from ..checked_values import describe
from ..config_reading import read_json
from ..models.level_config import LevelConfig
from ..schedulers.scheduler_config import SHARED_KEYS
from ..schedulers.scheduling_matryoshka import MatryoshkaScheduler
from .apple_mdm import ConvertedCheckpoint
from .checkpoint_layouts import find_state_dict
from .config_facts import REQUIRED, Facts, counts, flag, number, positive
from .model_building import build_model
from .state_dict_table import INNER, MAX_LEVELS, Row, StateDict, StateDictTable

CLASS_NAMES = ("MatryoshkaUNet2DConditionModel", "NestedUNet2DConditionModel")
WEIGHTS_FILE = "diffusion_pytorch_model.safetensors"
# The settings with which the published models were trained and are sampled.
PUBLISHED_SCHEDULER: dict[str, Any] = {
    "beta_schedule": "squaredcos_cap_v2",
    "prediction_type": "v_prediction",
    "clip_sample": True,
}

_BLOCK = r"(?P<block>(?:down_blocks|up_blocks)\.\d+)"
_LAYERS = re.compile(
    rf"(?P<levels>(?:inner_unet\.)*){_BLOCK}\.attentions\.(?P<j>\d+)\.transformer_blocks\.(?P<b>\d+)\."
)
_MID_LAYER = re.compile(r"mid_block\.attentions\.0\.transformer_blocks\.0\.")

RESNET_PARTS = ("norm1", "conv1", "time_emb_proj", "norm2", "conv2", "conv_shortcut")
ATTENTION_PARTS: list[tuple[str, tuple[str, ...]]] = [
    ("attn1.group_norm", ("norm",)),
    ("attn1.to_qkv", ("attn.to_q", "attn.to_k", "attn.to_v")),
    ("attn2.norm_cross", ("attn.norm_encoder",)),
    ("attn2.to_kv", ("attn.add_k_proj", "attn.add_v_proj")),
    ("proj_out", ("attn.to_out.0",)),
    ("ff.group_norm", ("ff.norm",)),
    ("ff.linear_gelu.proj", ("ff.proj_in",)),
    ("ff.linear_out", ("ff.proj_out",)),
]
PLACES = [
    ("down_blocks.{i}", "encoder.down_blocks.{i}"),
    ("mid_block", "decoder.mid_block"),
    ("up_blocks.{i}", "decoder.up_blocks.{i}"),
]
SINGLE_ROWS = [
    Row("time_embedding.linear_{i}", ("embedding.time_embedding.linear_{i}",)),
    Row("add_embedding.add_timestep_embedder.linear_{i}", ("embedding.micro_embeddings.scale.linear_{i}",)),
    Row("conv_in", ("encoder.conv_in",)),
    Row("down_blocks.{i}.downsamplers.0.conv", ("encoder.down_blocks.{i}.downsamplers.0.conv",)),
    Row("in_adapter", ("encoder.in_adapter",)),
    Row("out_adapter", ("decoder.out_adapter",)),
    Row("up_blocks.{i}.upsamplers.0.conv", ("decoder.up_blocks.{i}.upsamplers.0.conv",)),
    Row("conv_norm_out", ("decoder.norm_out",)),
    Row("conv_out", ("decoder.conv_out",)),
]
TEXT_ROWS = [Row("encoder_hid_proj", ("encoder_hid_proj",)), Row("add_embedding.cond_emb", ("text_embedding",))]
UNUSED_OF_OUTER_LEVELS = ("mid_block", "encoder_hid_proj")

TABLE = StateDictTable(
    [
        *SINGLE_ROWS,
        *(
            Row(f"{there}.resnets.{{j}}.{p}", (f"{here}.resnets.{{j}}.{p}",))
            for there, here in PLACES
            for p in RESNET_PARTS
        ),
        *(
            Row(f"{there}.attentions.{{j}}.{part}", tuple(f"{here}.attentions.{{j}}.{name}" for name in names))
            for there, here in PLACES
            for part, names in ATTENTION_PARTS
        ),
    ],
    TEXT_ROWS,
    UNUSED_OF_OUTER_LEVELS,
)


def convert_community_checkpoint(
    model_path: str | Path, shift_power: float | None = None, num_levels: int | None = None
) -> ConvertedCheckpoint:
    """Convert a folder of the community pipeline, or only its `unet` folder.

    Args:
        model_path: a U-Net folder, or a pipeline folder with `unet/` and possibly `scheduler/`.
        shift_power: exponent of the noise shift, which that pipeline does not save; None for the values that it uses
            itself: 2 for three levels, 1 otherwise.
        num_levels: convert only the inner `num_levels` levels; all of them if None.

    Raises:
        FileNotFoundError: the config or the weights are missing.
        ValueError: they belong to another class or to a video model, are damaged, or do not match.
    """
    model_path = Path(model_path)
    unet_path = model_path / "unet" if (model_path / "unet").is_dir() else model_path
    config = read_community_config(unet_path / "config.json")
    foreign = find_state_dict(_read_weights(unet_path))
    native, unused = TABLE.to_native(number_attentions(foreign))
    unet = build_model(map_community_config(config, foreign), native)
    scheduler_file = model_path / "scheduler" / "scheduler_config.json"
    settings = _read_json(scheduler_file) if scheduler_file.is_file() else {}
    # The shift is missing here, because that pipeline does not save it.
    kept = {key: value for key, value in settings.items() if key in SHARED_KEYS}
    power = shift_power if shift_power is not None else (2.0 if unet.num_levels == 3 else 1.0)
    scheduler = MatryoshkaScheduler(
        **{**PUBLISHED_SCHEDULER, **kept, "shift_power": power, "base_sample_size": unet.config["sample_size"]}
    )
    if num_levels is not None and num_levels != unet.num_levels:
        unet, unused = unet.inner_model(num_levels).eval(), {}
    return ConvertedCheckpoint(unet, scheduler, unused)


def read_community_config(path: Path) -> dict[str, Any]:
    """Return the contents of a `config.json` of one of the community pipeline's classes.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is not JSON, or is the config of another class.
    """
    config = _read_json(path)
    class_name = config.get("_class_name")
    if class_name not in CLASS_NAMES:
        raise ValueError(f"{path} is the config of {describe(class_name)}; expected {' or '.join(CLASS_NAMES)}.")
    return config


def _read_json(path: Path) -> dict[str, Any]:
    contents = read_json(path)
    if not isinstance(contents, dict):
        raise ValueError(f"{path} does not contain a mapping.")
    return contents


def _read_weights(unet_path: Path) -> StateDict:
    """Read the weights of a folder; safetensors only, in one file or in the shards that an index lists."""
    index_file = unet_path / f"{WEIGHTS_FILE}.index.json"
    names = [WEIGHTS_FILE]
    if index_file.is_file():
        weight_map = _read_json(index_file).get("weight_map")
        if not isinstance(weight_map, dict) or not all(isinstance(name, str) for name in weight_map.values()):
            raise ValueError(f"{index_file} does not list the files of the tensors. Download it again.")
        names = sorted(set(weight_map.values()))
    weights: StateDict = {}
    for name in names:
        file = unet_path / name
        if Path(name).name != name or not file.is_file():
            raise FileNotFoundError(f"There is no {file}; only safetensors are read.")
        try:
            weights.update(load_file(file))
        except SafetensorError as error:
            raise ValueError(f"{file} is damaged ({error}). Download it again.") from error
    return weights


def number_attentions(foreign: Mapping[str, torch.Tensor]) -> StateDict:
    """Number the attention layers of each block consecutively: layer b after residual block j becomes j * a + b."""
    layers_after_each: dict[str, int] = {}
    for name in foreign:
        if match := _LAYERS.match(name):
            block = match["levels"] + match["block"]
            layers_after_each[block] = max(layers_after_each.get(block, 0), int(match["b"]) + 1)

    def running(match: re.Match[str]) -> str:
        block = match["levels"] + match["block"]
        return f"{block}.attentions.{int(match['j']) * layers_after_each[block] + int(match['b'])}."

    return {
        _MID_LAYER.sub("mid_block.attentions.0.", _LAYERS.sub(running, name)): tensor
        for name, tensor in foreign.items()
    }


def map_community_config(config: Mapping[str, Any], foreign: Mapping[str, torch.Tensor]) -> dict[str, Any]:
    """Return our model config. Keys that an inner config omits are inferred from tensor shapes.

    Raises:
        ValueError: the config describes a video model, or omits a value that shapes do not determine.
    """
    nodes = [Facts("", config, None)]
    while inner := nodes[-1].child("inner_config"):
        nodes.append(inner)
        if len(nodes) > MAX_LEVELS:
            raise ValueError(f"The config nests more than {MAX_LEVELS} levels.")
    level_configs = tuple(
        _level_config(node, foreign, INNER * depth, is_inner=depth == len(nodes) - 1)
        for depth, node in enumerate(nodes)
    )[::-1]
    innermost, prefix = nodes[-1], INNER * (len(nodes) - 1)
    projection = foreign.get(f"{prefix}encoder_hid_proj.weight")
    pooled = foreign.get(f"{prefix}add_embedding.cond_emb.weight")
    if pooled is None:
        raise ValueError(
            f"The weights have no {prefix}add_embedding.cond_emb.weight, which projects the text features."
        )
    return {
        "sample_size": innermost.get("sample_size", positive, default=64),
        **LevelConfig.columns_from(level_configs),
        "time_embed_dim": pooled.shape[0],
        "encoder_hid_dim": None if projection is None else projection.shape[1],
        "cross_attention_dim": pooled.shape[1],
        "use_cross_attention_mask": innermost.get("masked_cross_attention", flag, default=False),
        "norm_eps": innermost.get("norm_eps", number, default=1e-5),
        "in_channels": innermost.get("in_channels", positive, default=3),
        "out_channels": innermost.get("out_channels", positive, default=3),
    }


def _level_config(node: Facts, foreign: Mapping[str, torch.Tensor], prefix: str, is_inner: bool) -> LevelConfig:
    if node.get("temporal_mode", flag, default=False):
        raise ValueError("`temporal_mode` is true: this is a video model, which this converter does not support.")
    missing = [key for key in ("block_out_channels", "layers_per_block", "down_block_types") if key not in node.yaml]
    if missing:
        raise ValueError(f"The config of the level at {prefix or 'the top'!r} does not give `{missing[0]}`.")
    channels = node.get("block_out_channels", counts)
    kinds = node.get("down_block_types", _names)
    if len(kinds) != len(channels):
        raise ValueError(f"`down_block_types` has {len(kinds)} entries; expected one for each of {channels}.")
    depths = _one_each(node, "transformer_layers_per_block", len(channels), default=(1,))
    own = [name.removeprefix(prefix) for name in foreign if name.startswith(prefix)]
    return LevelConfig(
        block_out_channels=channels,
        layers_per_block=_one_each(node, "layers_per_block", len(channels)),
        attention_layers_per_block=tuple(
            depth if "CrossAttn" in kind else 0 for kind, depth in zip(kinds, depths, strict=True)
        ),
        has_mid_block=is_inner and any(name.startswith("mid_block.") for name in own),
        has_attention_ffn=any(not name.startswith(INNER) and ".ff.linear_out." in name for name in own),
        norm_num_groups=node.get("norm_num_groups", positive, default=32),
        normalize_input=not is_inner and not node.get("skip_normalization", flag, default=False),
        dropout=node.get("dropout", number, default=0.0),
        micro_conditioning_keys=("scale",),
        micro_conditioning_defaults=(node.get("micro_conditioning_scale", number, default=64.0),),
    )


def _one_each(node: Facts, key: str, num_resolutions: int, default: Any = REQUIRED) -> tuple[int, ...]:
    numbers = node.get(key, counts, default=default)
    numbers = numbers * num_resolutions if len(numbers) == 1 else numbers
    if len(numbers) != num_resolutions:
        raise ValueError(f"`{key}` has {len(numbers)} entries; expected one for each of {num_resolutions} channels.")
    return numbers


def _names(value: Any) -> tuple[str, ...]:
    if not isinstance(value, (list, tuple)) or not all(isinstance(item, str) for item in value):
        raise ValueError(f"expected a list of names, got {describe(value)}.")
    return tuple(value)
