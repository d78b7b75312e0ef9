# SPDX-License-Identifier: Apache-2.0
"""Conversion of checkpoints of the published implementation (Apple's ml-mdm), in both directions.

The outer levels of some checkpoints contain weights that the published code creates but never uses (middle blocks,
text modules, `interp_layer*`), and video levels contain constants (the frequencies of rotary positions). Our model has
no place for either, so they are kept in `unused_apple_mdm.safetensors` beside the weights; with that file, converting
back gives exactly the same tensors.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file

from ..models.level_config import TEMPORAL_HEAD_DIM
from ..models.nested_unet import NestedUNetModel
from ..models.weight_sharing import borrowed_names
from ..schedulers.scheduling_matryoshka import MatryoshkaScheduler
from .apple_mdm_config import check_published_frames, map_apple_config, read_apple_config
from .checkpoint_layouts import find_state_dict
from .model_building import build_model, check_names_and_shapes, check_sizes, empty_model
from .state_dict_table import INNER, Row, StateDict, StateDictTable, count_levels, inner_levels
from .untrusted_checkpoint import read_untrusted_checkpoint

UNUSED_FILE = "unused_apple_mdm.safetensors"
_SHARD = r"(?:-\d+-of-\d+)?"

# Where the blocks of a level are: (place in ml-mdm, place in our model).
RESNET_PLACES = [
    ("down_blocks.{i}.resnets.{j}", "encoder.down_blocks.{i}.resnets.{j}"),
    ("mid_blocks.0.resnets.0", "decoder.mid_block.resnets.0"),
    ("mid_blocks.1.resnets.0", "decoder.mid_block.resnets.1"),
    ("up_blocks.{i}.resnets.{j}", "decoder.up_blocks.{i}.resnets.{j}"),
]
ATTENTION_PLACES = [
    ("down_blocks.{i}.attn.{j}", "encoder.down_blocks.{i}.attentions.{j}"),
    ("mid_blocks.0.attn.0", "decoder.mid_block.attentions.0"),
    ("up_blocks.{i}.attn.{j}", "decoder.up_blocks.{i}.attentions.{j}"),
]
TEMPORAL_PLACES = [
    ("down_blocks.{i}.t_attn.{j}", "encoder.down_blocks.{i}.temporal_attentions.{j}"),
    ("up_blocks.{i}.t_attn.{j}", "decoder.up_blocks.{i}.temporal_attentions.{j}"),
]
# (part in ml-mdm, parts in our model, whether it is a 1x1 convolution there and a linear layer here)
RESNET_PARTS: list[tuple[str, tuple[str, ...], bool]] = [
    ("norm1", ("norm1",), False),
    ("conv1", ("conv1",), False),
    ("time_layer", ("time_emb_proj",), False),
    ("norm2", ("norm2",), False),
    ("conv2", ("conv2",), False),
    ("conv3", ("conv_shortcut",), False),
]
ATTENTION_PARTS: list[tuple[str, tuple[str, ...], bool]] = [
    ("norm", ("norm",), False),
    ("qkv", ("attn.to_q", "attn.to_k", "attn.to_v"), True),
    ("norm_cond", ("attn.norm_encoder",), False),
    ("kv_cond", ("attn.add_k_proj", "attn.add_v_proj"), False),
    ("proj_out", ("attn.to_out.0",), True),
    ("ffn.0", ("ff.norm",), False),
    ("ffn.1", ("ff.proj_in",), True),
    ("ffn.3", ("ff.proj_out",), True),
]
TEMPORAL_PARTS: list[tuple[str, tuple[str, ...], bool]] = [
    ("down_conv", ("down_conv",), False),
    ("attn.norm", ("norm",), False),
    ("attn.qkv", ("attn.to_q", "attn.to_k", "attn.to_v"), False),
    ("attn.proj_out", ("attn.to_out.0",), False),
    ("mlp.main.0", ("ff.norm",), False),
    ("mlp.main.1", ("ff.proj_in",), False),
    ("mlp.main.3", ("ff.proj_out",), False),
    ("up_conv", ("up_conv",), False),
]
SINGLE_ROWS = [
    Row("temb_layer1", ("embedding.time_embedding.linear_1",)),
    Row("temb_layer2", ("embedding.time_embedding.linear_2",)),
    Row("cond_layers.{m}.0", ("embedding.micro_embeddings.{m}.linear_1",)),
    Row("cond_layers.{m}.1", ("embedding.micro_embeddings.{m}.linear_2",)),
    Row("conv_in", ("encoder.conv_in",)),
    Row("down_blocks.{i}.resample", ("encoder.down_blocks.{i}.downsamplers.0.conv",)),
    Row("in_adapter", ("encoder.in_adapter",)),
    Row("out_adapter", ("decoder.out_adapter",)),
    Row("up_blocks.{i}.resample", ("decoder.up_blocks.{i}.upsamplers.0.conv",)),
    Row("norm_out", ("decoder.norm_out",)),
    Row("conv_out", ("decoder.conv_out",)),
]
TEXT_ROWS = [
    Row("lm_proj", ("encoder_hid_proj",)),
    Row("cond_emb", ("text_embedding",)),
    Row("lm_head.{i}.attn.norm", ("text_layers.{i}.norm",)),
    Row(
        "lm_head.{i}.attn.qkv", ("text_layers.{i}.attn.to_q", "text_layers.{i}.attn.to_k", "text_layers.{i}.attn.to_v")
    ),
    Row("lm_head.{i}.attn.proj_out", ("text_layers.{i}.attn.to_out.0",)),
    Row("lm_head.{i}.mlp.main.0", ("text_layers.{i}.ff.norm",)),
    Row("lm_head.{i}.mlp.main.1", ("text_layers.{i}.ff.proj_in",)),
    Row("lm_head.{i}.mlp.main.3", ("text_layers.{i}.ff.proj_out",)),
]
ROTARY_TABLE = ".attn.pos_emb.freqs"
UNUSED_OF_OUTER_LEVELS = ("mid_blocks", "lm_proj", "cond_emb", "lm_head", "interp_layer1", "interp_layer2")


def _rows_at(places: list[tuple[str, str]], parts: list[tuple[str, tuple[str, ...], bool]]) -> list[Row]:
    return [
        Row(f"{there}.{part}", tuple(f"{here}.{name}" for name in names), pointwise)
        for there, here in places
        for part, names, pointwise in parts
    ]


TABLE = StateDictTable(
    [
        *SINGLE_ROWS,
        *_rows_at(RESNET_PLACES, RESNET_PARTS),
        *_rows_at(ATTENTION_PLACES, ATTENTION_PARTS),
        *_rows_at(TEMPORAL_PLACES, TEMPORAL_PARTS),
    ],
    TEXT_ROWS,
    UNUSED_OF_OUTER_LEVELS,
)


@dataclass
class ConvertedCheckpoint:
    """A foreign checkpoint, converted to our classes.

    Attributes:
        unet: the model, in evaluation mode.
        scheduler: the noise schedule and sampler settings that it was trained with.
        unused: tensors for which our model has no place, under their foreign names.
    """

    unet: NestedUNetModel
    scheduler: MatryoshkaScheduler
    unused: StateDict = field(default_factory=dict)


def convert_apple_checkpoint(
    checkpoint_path: str | Path,
    config_path: str | Path | None = None,
    num_levels: int | None = None,
    state_dict_key: str | None = None,
) -> ConvertedCheckpoint:
    """Convert a `vis_model.pth`, without executing anything that it contains.

    Args:
        checkpoint_path: file written by the published trainer: a dict with `state_dict` and possibly `args`.
        config_path: the model's YAML config; can be omitted if the checkpoint contains the trainer's arguments.
        num_levels: convert only the inner `num_levels` levels; all of them if None.
        state_dict_key: which weights to take from a checkpoint that has several, e.g. "ema".

    Raises:
        FileNotFoundError: one of the files does not exist.
        ValueError: the file is damaged, the config is invalid or belongs to another model, or tensors are missing or
            unknown.
    """
    yaml = read_apple_config(config_path) if config_path is not None else None
    checkpoint = read_untrusted_checkpoint(checkpoint_path)
    foreign = find_state_dict(checkpoint, state_dict_key)
    if is_native(foreign):
        raise ValueError(
            f"{checkpoint_path} has this package's own names (levels.…), so there is nothing to convert. Load it with "
            "NestedUNetModel.from_single_file(path, config=folder), where the folder holds its config.json."
        )
    unet_config, scheduler_config = map_apple_config(foreign, yaml, checkpoint.get("args"))
    native, unused = to_native_state_dict(foreign)
    unet = build_model(unet_config, native)
    scheduler = MatryoshkaScheduler(**scheduler_config)
    if num_levels is not None and num_levels != count_levels(foreign):
        inner_levels(foreign, num_levels)  # raises for invalid numbers
        unet, unused = unet.inner_model(num_levels).eval(), {}
    return ConvertedCheckpoint(unet, scheduler, unused)


def to_native_state_dict(foreign: Mapping[str, torch.Tensor]) -> tuple[StateDict, StateDict]:
    """Return (our state dict, tensors for which our model has no place, under their foreign names).

    Raises:
        ValueError: names or shapes do not occur in models of the published code, or rotary frequencies differ from the
            ones it creates.
    """
    tables = {name: tensor for name, tensor in foreign.items() if name.endswith(ROTARY_TABLE)}
    for name, table in tables.items():
        expected = rotary_frequencies()
        if table.shape != expected.shape or not torch.allclose(table.float(), expected, rtol=1e-2, atol=0):
            raise ValueError(
                f"{name} does not hold the frequencies 10000^(-2i / {TEMPORAL_HEAD_DIM}), i < {len(expected)}: "
                f"this is not a checkpoint of the published code, where they are constant."
            )
    native, unused = TABLE.to_native({name: tensor for name, tensor in foreign.items() if name not in tables})
    return native, {**unused, **tables}


def is_native(state_dict: Mapping[str, Any]) -> bool:
    """Return whether a state dict already has our own names."""
    return any(name.startswith("levels.") for name in state_dict)


def rotary_frequencies() -> torch.Tensor:
    """Return the frequencies `(16,)` that the published code stores with each temporal attention with rotary
    positions.
    """
    exponents = torch.arange(0, TEMPORAL_HEAD_DIM, 2).float() / TEMPORAL_HEAD_DIM
    return 1.0 / (10000.0**exponents)


def rotary_tables(unet: NestedUNetModel) -> StateDict:
    """Return the frequency tensors that the published code would store with this model, by foreign name."""
    if not any(level.temporal_rotary for level in unet.level_configs):
        return {}
    outermost, last = len(unet.level_configs) - 1, ".down_conv.bias"
    return {
        name.removesuffix(last) + ROTARY_TABLE: rotary_frequencies()
        for name in TABLE.to_foreign(unet.state_dict())
        if name.endswith(last) and unet.level_configs[outermost - name.count(INNER)].temporal_rotary
    }


def to_apple_state_dict(native: Mapping[str, torch.Tensor], unused: Mapping[str, torch.Tensor]) -> StateDict:
    """Return the foreign state dict for our weights: the exact inverse of `to_native_state_dict`.

    Args:
        native: state dict of a NestedUNetModel.
        unused: tensors that only the foreign format has, under their foreign names (possibly empty).

    Raises:
        ValueError: the model has parts that the published code does not have, such as class embeddings or adapters.
    """
    foreign = TABLE.to_foreign(native)
    clashing = sorted(set(unused) & set(foreign))
    if clashing:
        raise ValueError(
            f"{UNUSED_FILE} holds {clashing[0]}, which the model itself has too: the file belongs to another model."
        )
    # Clones, because a tensor that is a view would be written with the whole memory that it shares.
    return {name: tensor.detach().cpu().contiguous().clone() for name, tensor in {**foreign, **unused}.items()}


def read_converted(model_path: str | Path, variant: str | None = None) -> tuple[NestedUNetModel, StateDict]:
    """Load a local model or pipeline folder in its saved dtype, and the tensors that only the foreign format has.

    Layers that levels share are copied for each level, because the published code cannot share layers.

    Raises:
        FileNotFoundError: there is no such folder, or it has no safetensors of this variant.
        ValueError: the weights or the file of unused tensors are damaged, or the model has a kind of video level that
            the published code does not have.
    """
    folder = Path(model_path)
    folder = folder / "unet" if (folder / "unet").is_dir() else folder
    dtype = _dtype_of_weights(folder, variant)
    unet = NestedUNetModel.from_pretrained(folder, variant=variant, dtype=dtype, use_safetensors=True)
    check_published_frames(unet.level_configs)
    unet = unet.without_sharing() if borrowed_names(unet) else unet
    unused = folder / UNUSED_FILE
    try:
        return unet, {**rotary_tables(unet), **(load_file(unused) if unused.is_file() else {})}
    except SafetensorError as error:
        raise ValueError(f"{unused} is damaged ({error}); convert the checkpoint again.") from error


def _dtype_of_weights(folder: Path, variant: str | None) -> torch.dtype:
    """Return the dtype of the weights in a model folder; of one variant, since there may be others beside it."""
    part = re.escape(f".{variant}") if variant else ""
    pattern = re.compile(rf"diffusion_pytorch_model{_SHARD}{part}{_SHARD}[.]safetensors")
    weights = sorted(path for path in folder.glob("*.safetensors") if pattern.fullmatch(path.name))
    if not weights or not (folder / "config.json").is_file():
        raise FileNotFoundError(
            f"{folder} is not a model folder: it needs a config.json and safetensors"
            + (f" of the variant {variant!r}." if variant else ".")
        )
    try:
        with safe_open(weights[0], "pt") as file:
            return file.get_tensor(next(iter(file.keys()))).dtype
    except (SafetensorError, StopIteration) as error:
        raise ValueError(f"{weights[0]} is damaged ({error}). Fetch it again.") from error


def map_single_file_checkpoint(
    checkpoint: Mapping[str, Any], config: Mapping[str, Any], **kwargs: Any
) -> dict[str, torch.Tensor]:
    """Map a published checkpoint for `NestedUNetModel.from_single_file`: diffusers' `checkpoint_mapping_fn`.

    If the config has fewer levels than the checkpoint, the inner levels are taken.

    Raises:
        ValueError: the checkpoint and the config do not match.
    """
    foreign = find_state_dict(checkpoint)
    if is_native(foreign):
        check_names_and_shapes(empty_model(config), foreign)
        return foreign
    num_levels = len(config["block_out_channels"])
    native, _ = to_native_state_dict(inner_levels(foreign, min(num_levels, count_levels(foreign))))
    # diffusers would load what matches and leave the rest uninitialised.
    check_names_and_shapes(empty_model(config), native)
    return {name: tensor.contiguous() for name, tensor in native.items()}


def map_single_file_config(original_config: Mapping[str, Any], checkpoint: Mapping[str, Any]) -> dict[str, Any]:
    """Return our model config for `from_single_file(..., original_config="model.yaml")`: its `config_mapping_fn`.

    Args:
        original_config: contents of the YAML config; can be empty if the checkpoint contains the trainer's arguments.
        checkpoint: a foreign state dict, or the result of `read_single_file`.
    """
    foreign = find_state_dict(checkpoint)
    config, _ = map_apple_config(foreign, original_config, checkpoint.get("args"))
    check_sizes(config, foreign)
    return config


def read_single_file(path: str | Path, state_dict_key: str | None = None) -> dict[str, Any]:
    """Return {"state_dict", "args"} of a local `.pth` for `from_single_file`, without executing anything from it.

    diffusers itself reads such files with `torch.load(weights_only=True)`, which refuses what the published trainer
    writes. With `args` (None if there are none) `map_single_file_config` needs no YAML. For a file of this package's
    own weights, their state dict is returned.

    Args:
        path: a file written by `torch.save`.
        state_dict_key: which weights to take from a checkpoint that has several, e.g. "ema".
    """
    checkpoint = read_untrusted_checkpoint(path)
    state_dict = find_state_dict(checkpoint, state_dict_key)
    return state_dict if is_native(state_dict) else {"state_dict": state_dict, "args": checkpoint.get("args")}
