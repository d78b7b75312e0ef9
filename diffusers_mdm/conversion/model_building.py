# SPDX-License-Identifier: Apache-2.0
"""Building a model from a converted config and the weights of its checkpoint."""

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from accelerate import init_empty_weights

from ..models.nested_unet import NestedUNetModel
from .state_dict_table import MAX_LISTED, StateDict


def build_model(config: Mapping[str, Any], native: StateDict) -> NestedUNetModel:
    """Return a model with this config and exactly these weights, in their own dtype.

    Raises:
        ValueError: a tensor is missing, left over, or has a different shape from the one in the config.
    """
    check_sizes(config, native)
    unet = empty_model(config)
    check_names_and_shapes(unet, native)
    unet.load_state_dict({name: tensor.contiguous() for name, tensor in native.items()}, strict=True, assign=True)
    return unet.eval()


def empty_model(config: Mapping[str, Any]) -> NestedUNetModel:
    """Return a model with this config whose weights are on the meta device (shapes without memory)."""
    with init_empty_weights():
        return NestedUNetModel.from_config(dict(config))


def check_names_and_shapes(unet: NestedUNetModel, native: Mapping[str, torch.Tensor]) -> None:
    """Raise a ValueError unless the model has exactly the names and shapes of `native`."""
    expected = unet.state_dict()
    problems = [f"{name} is missing" for name in expected if name not in native]
    problems += [f"{name} has no place in the model" for name in native if name not in expected]
    problems += [
        f"{name} has shape {tuple(tensor.shape)} but the config requires {tuple(expected[name].shape)}"
        for name, tensor in native.items()
        if name in expected and tensor.shape != expected[name].shape
    ]
    if problems:
        listed = "; ".join(problems[:MAX_LISTED]) + ("; …" if len(problems) > MAX_LISTED else "")
        raise ValueError(
            f"The checkpoint and its config do not match ({len(problems)} tensors): {listed}. Use the config that "
            f"belongs to this checkpoint, and download the checkpoint again if it may be incomplete."
        )


def check_sizes(config: Mapping[str, Any], weights: Mapping[str, torch.Tensor]) -> None:
    """Raise a ValueError if a config describes more or wider layers than its checkpoint can contain.

    Building a model takes time and memory for each layer, even without weights, and a malicious config can describe a
    billion of them.

    Args:
        config: config of a NestedUNetModel whose levels share no layers.
        weights: all tensors of the checkpoint; the names do not matter.
    """
    layers = config.get("num_text_layers") or 0
    layers += sum(map(len, config["micro_conditioning_keys"]))
    for index, blocks in enumerate(config["layers_per_block"]):
        spatial = config["attention_layers_per_block"][index]
        temporal = (config.get("temporal_layers_per_block") or {index: None})[index] or (0,) * len(blocks)
        layers += sum(n * (1 + s + t) for n, s, t in zip(blocks, spatial, temporal, strict=True))
    if layers > len(weights):
        raise ValueError(
            f"The config describes {layers} layers or more, but the checkpoint has {len(weights)} tensors; use the "
            "config that belongs to this checkpoint."
        )
    widths = [config["time_embed_dim"], *_flat(config["block_out_channels"])]
    widest = max((side for tensor in weights.values() for side in tensor.shape), default=0)
    for width in (min(widths), max(widths)):
        if not 1 <= width <= widest:
            raise ValueError(
                f"The config describes a layer of width {width}, but the widest tensor of the checkpoint has "
                f"{widest}; use the config that belongs to this checkpoint."
            )


def _flat(rows: Iterable[Iterable[int]]) -> list[int]:
    return [value for row in rows for value in row]
