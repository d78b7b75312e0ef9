# SPDX-License-Identifier: Apache-2.0
"""Mapping of LoRA weight names, as various tools write them, to those of diffusers.

Like diffusers, we write `unet.<module>.lora_A.weight` and `unet.<module>.lora_B.weight`. We also read names without a
prefix, those of peft (`base_model.model.`, the adapter's name before `weight`), of compiled or distributed models
(`_orig_mod.`, `module.`), and of kohya's trainer (`lora_unet_`, underscores for dots, `lora_down` and `lora_up`).
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import NamedTuple

import torch
from torch import nn

StateDict = dict[str, torch.Tensor]

UNET_PREFIX = "unet"
_PREFIXES = ("unet.", "base_model.model.", "module.", "lora_unet_")
_COMPILED = "_orig_mod."
# The layer, which matrix it is, perhaps the adapter's name, and the kind of tensor; some tools write _ for dots.
_WEIGHT = re.compile(
    r"(?P<layer>.+?)[._]lora[._](?P<part>A|B|down|up|magnitude_vector)(?:\.(?!weight$|bias$)[^.]+)?"
    r"(?:[._](?P<kind>weight|bias))?"
)
_PARTS = {"A": "lora_A", "B": "lora_B", "down": "lora_A", "up": "lora_B", "magnitude_vector": "lora_magnitude_vector"}
_ALPHA = re.compile(r"(?P<layer>.+)\.alpha")
# How many names a message lists.
_MAX_LISTED = 5


class NamedLora(NamedTuple):
    """LoRA weights under diffusers' names for the U-Net.

    Args:
        weights: by `unet.<module>.lora_A.weight` and the like.
        alphas: alphas of the layers that have one, by `unet.<module>.alpha`; empty if none has.
    """

    weights: StateDict
    alphas: dict[str, float]


def name_lora_weights(state_dict: Mapping[str, torch.Tensor], unet: nn.Module) -> NamedLora:
    """Rename LoRA weights to diffusers' names, checked against the layers of a model.

    Args:
        state_dict: the weights, named as in the file.
        unet: the model they are for.

    Raises:
        ValueError: a name belongs to no layer of the model, one matrix of a pair is missing, or a matrix does not fit
            the size of its layer.
    """
    layers = {name: module for name, module in unet.named_modules() if name}
    flat = {name.replace(".", "_"): name for name in layers}
    weights: StateDict = {}
    alphas: dict[str, float] = {}
    unknown: list[str] = []
    for key, value in state_dict.items():
        name = _without_prefixes(key)
        alpha, weight = _ALPHA.fullmatch(name), _WEIGHT.fullmatch(name)
        layer = _layer_of((alpha or weight or {"layer": ""})["layer"], layers, flat)
        if layer is None:
            unknown.append(key)
        elif alpha is not None:
            alphas[f"{UNET_PREFIX}.{layer}.alpha"] = float(value)
        elif weight is not None:
            part, kind = _PARTS[weight["part"]], weight["kind"]
            own = f"{UNET_PREFIX}.{layer}.{part}"
            weights[own if part == "lora_magnitude_vector" else f"{own}.{kind or 'weight'}"] = value
    if unknown:
        raise ValueError(
            f"{len(unknown)} of {len(state_dict)} names belong to no layer of this U-Net: {_listed(unknown)}. "
            "Expected names such as 'unet.<layer>.lora_A.weight' and '.lora_B.weight', with the layers of the model "
            "that the LoRA was trained for; weights for other parts, such as text encoders, cannot be loaded."
        )
    _check_matrices(weights, layers)
    return NamedLora(weights, alphas)


def _without_prefixes(key: str) -> str:
    name = key.replace(_COMPILED, "")
    while True:
        prefix = next((prefix for prefix in _PREFIXES if name.startswith(prefix)), None)
        if prefix is None:
            return name
        name = name.removeprefix(prefix)


def _layer_of(name: str, layers: Mapping[str, nn.Module], flat: Mapping[str, str]) -> str | None:
    return name if name in layers else flat.get(name)


def _check_matrices(weights: Mapping[str, torch.Tensor], layers: Mapping[str, nn.Module]) -> None:
    """Check that the matrices come in pairs and fit their layers."""
    for name, value in weights.items():
        head, _, part = name.rpartition(".lora_")
        if part not in ("A.weight", "B.weight"):
            continue
        partner = f"{head}.lora_{'B' if part[0] == 'A' else 'A'}.weight"
        if partner not in weights:
            raise ValueError(f"{name!r} comes without {partner!r}; a LoRA needs both for each of its layers.")
        base = getattr(layers[head.removeprefix(f"{UNET_PREFIX}.")], "weight", None)
        if not isinstance(base, torch.Tensor) or base.ndim < 2:
            raise ValueError(
                f"{name!r} is for a layer that LoRA cannot adapt; expected a linear layer or a convolution."
            )
        position = 1 if part[0] == "A" else 0
        if value.ndim != base.ndim or value.shape[position] != base.shape[position]:
            raise ValueError(
                f"{name!r} has shape {tuple(value.shape)}, but the weights of its layer have shape "
                f"{tuple(base.shape)}: the LoRA was trained for a model of a different size."
            )


def _listed(names: list[str]) -> str:
    return ", ".join(map(repr, names[:_MAX_LISTED])) + (", …" if len(names) > _MAX_LISTED else "")
