# SPDX-License-Identifier: Apache-2.0
"""LoRA training: adding adapters to a frozen model, and saving them in the format of `load_lora_weights`."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

import torch
from peft import LoraConfig
from peft.utils import get_peft_model_state_dict, set_peft_model_state_dict

from ...models.nested_unet import NestedUNetModel
from ...pipelines.pipeline_mdm import MDMPipeline
from ..recipe.recipe import LoraRecipe

ADAPTER_NAME = "default"
# All projections of all attention layers: of self-attention, of the text, and of the output.
ATTENTION_PROJECTIONS = ("to_q", "to_k", "to_v", "to_out.0", "add_k_proj", "add_v_proj")
_MARK = ".lora_"  # part of the names of all parameters that LoRA adds


def add_lora(unet: NestedUNetModel, recipe: LoraRecipe) -> None:
    """Freeze `unet` and add an adapter with fp32 weights, which are then the only trainable ones.

    The second matrix of every pair is initialised with zeros, so the model's predictions remain exactly the same.

    Raises:
        ValueError: a target is not in the model or does not support LoRA, or the model already has an adapter.
    """
    if ADAPTER_NAME in getattr(unet, "peft_config", {}):
        raise ValueError(
            "The model already has a LoRA adapter; add one to a model without adapters, or load a saved one with "
            "`load_lora`."
        )
    unet.add_adapter(adapter_config(unet, recipe), adapter_name=ADAPTER_NAME)
    _train_adapter_alone(unet)


def adapter_config(unet: NestedUNetModel, recipe: LoraRecipe) -> LoraConfig:
    """Return the config for peft; without `target_modules`, its targets are the model's attention projections.

    Raises:
        ValueError: a target matches no layer of the model that supports LoRA; the message lists those that do.
    """
    suitable = suitable_targets(unet)
    wanted = recipe.target_modules
    if wanted is None:
        wanted = tuple(name for name in ATTENTION_PROJECTIONS if any(_is_at(name, place) for place in suitable))
    unknown = [name for name in wanted if not any(_is_at(name, place) for place in suitable)]
    if unknown or not wanted:
        kinds = sorted({_short_name(place) for place in suitable})
        problem = f"No layer of the model is called {unknown}" if unknown else "There are no layers for LoRA"
        raise ValueError(
            f"{problem}. LoRA supports linear and convolution layers, named by their full path or its end: "
            f"{', '.join(kinds)}."
        )
    return LoraConfig(
        r=recipe.rank,
        lora_alpha=cast(Any, recipe.rank if recipe.alpha is None else recipe.alpha),
        lora_dropout=recipe.dropout,
        init_lora_weights="gaussian",
        target_modules=list(wanted),
    )


def suitable_targets(unet: NestedUNetModel) -> list[str]:
    """Return the paths of all layers that support LoRA."""
    layers = (torch.nn.Linear, torch.nn.Conv2d)
    return [name for name, module in unet.named_modules() if isinstance(module, layers)]


def _is_at(target: str, place: str) -> bool:
    """Return whether peft matches the layer with path `place` to `target`."""
    return place == target or place.endswith(f".{target}")


def _short_name(place: str) -> str:
    """Return the end of a path that identifies the kind of layer: "to_q", "to_out.0"."""
    *parents, last = place.split(".")
    return f"{parents[-1]}.{last}" if last.isdigit() and parents else last


def save_lora(
    unet: NestedUNetModel, output_dir: str | Path, state_dict: Mapping[str, torch.Tensor] | None = None
) -> Path:
    """Write `pytorch_lora_weights.safetensors` in the format of `MDMPipeline.load_lora_weights`.

    Args:
        unet: a model with the adapter of `add_lora`.
        output_dir: folder, created if missing.
        state_dict: the model's full state dict, if `unet` has only a shard of it (FSDP).

    Returns:
        The path of the file.
    """
    layers = get_peft_model_state_dict(
        unet, state_dict=None if state_dict is None else dict(state_dict), adapter_name=ADAPTER_NAME
    )
    # Without the settings in its metadata, a file is assumed to have an alpha equal to the rank.
    MDMPipeline.save_lora_weights(
        output_dir,
        unet_lora_layers={name: value.detach().cpu().contiguous() for name, value in layers.items()},
        unet_lora_adapter_metadata=unet.peft_config[ADAPTER_NAME].to_dict(),
    )
    return Path(output_dir) / "pytorch_lora_weights.safetensors"


def load_lora(unet: NestedUNetModel, folder: str | Path) -> None:
    """Load exactly what `save_lora` wrote, to continue training; adds the adapter if the model has none.

    Raises:
        ValueError: the model has an adapter of another shape.
    """
    state_dict, metadata = cast(
        tuple[dict[str, torch.Tensor], dict[str, Any] | None],
        MDMPipeline.lora_state_dict(folder, return_lora_metadata=True, use_safetensors=True),
    )
    if ADAPTER_NAME not in getattr(unet, "peft_config", {}):
        MDMPipeline.load_lora_into_unet(state_dict, unet, ADAPTER_NAME, metadata, low_cpu_mem_usage=False)
        _train_adapter_alone(unet)
        return
    weights = {name.removeprefix("unet."): value for name, value in state_dict.items()}
    expected = {
        name: value.shape for name, value in get_peft_model_state_dict(unet, adapter_name=ADAPTER_NAME).items()
    }
    different = sorted(
        name for name in expected.keys() | weights if name not in weights or weights[name].shape != expected.get(name)
    )
    if different:
        raise ValueError(
            f"The LoRA weights in {folder} do not fit the model's adapter: {len(different)} of {len(expected)} "
            f"differ, e.g. {different[0]}. Use the rank and target modules with which it was saved."
        )
    set_peft_model_state_dict(unet, weights, adapter_name=ADAPTER_NAME)


def _train_adapter_alone(unet: NestedUNetModel) -> None:
    """Make only the adapter trainable, in fp32 regardless of the model's dtype: half precision would lose small
    updates.
    """
    for name, parameter in unet.named_parameters():
        is_adapter = _MARK in name
        parameter.requires_grad_(is_adapter)
        if is_adapter:
            parameter.data = parameter.data.float()
