# SPDX-License-Identifier: Apache-2.0
"""LoRA for training: small trainable matrices beside frozen layers, saved as `load_lora_weights` reads them."""

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
# Every projection of every attention: of the own tokens, of the text, and back.
ATTENTION_PROJECTIONS = ("to_q", "to_k", "to_v", "to_out.0", "add_k_proj", "add_v_proj")
_MARK = ".lora_"  # in the names of all that LoRA adds


def add_lora(unet: NestedUNetModel, recipe: LoraRecipe) -> None:
    """Freeze `unet` and add an adapter of fp32 weights, the only ones that then need gradients.

    The second matrix of every pair starts at zero, so that the model's prediction does not change by a bit.

    Raises:
        ValueError: a target is not in the model or cannot carry LoRA, or the model has an adapter already.
    """
    if ADAPTER_NAME in getattr(unet, "peft_config", {}):
        raise ValueError(
            "The model has a LoRA adapter already; add it to the plain model, and read a saved one with `load_lora`."
        )
    unet.add_adapter(adapter_config(unet, recipe), adapter_name=ADAPTER_NAME)
    _train_adapter_alone(unet)


def adapter_config(unet: NestedUNetModel, recipe: LoraRecipe) -> LoraConfig:
    """What peft needs to know; without `target_modules` those attention projections that the model has.

    Raises:
        ValueError: a target names nothing in the model that can carry LoRA; the message lists what can.
    """
    suitable = suitable_targets(unet)
    wanted = recipe.target_modules
    if wanted is None:
        wanted = tuple(name for name in ATTENTION_PROJECTIONS if any(_is_at(name, place) for place in suitable))
    unknown = [name for name in wanted if not any(_is_at(name, place) for place in suitable)]
    if unknown or not wanted:
        kinds = sorted({_short_name(place) for place in suitable})
        problem = f"No layer of the model is called {unknown}" if unknown else "There is nothing to put LoRA on"
        raise ValueError(
            f"{problem}. LoRA can go on linear and convolution layers, named by their whole path or by its end: "
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
    """Paths of all layers that can carry LoRA."""
    layers = (torch.nn.Linear, torch.nn.Conv2d)
    return [name for name, module in unet.named_modules() if isinstance(module, layers)]


def _is_at(target: str, place: str) -> bool:
    """Whether peft takes the layer at the path `place` for `target`."""
    return place == target or place.endswith(f".{target}")


def _short_name(place: str) -> str:
    """The end of a path that tells what a layer is: "to_q", "to_out.0"."""
    *parents, last = place.split(".")
    return f"{parents[-1]}.{last}" if last.isdigit() and parents else last


def save_lora(
    unet: NestedUNetModel, output_dir: str | Path, state_dict: Mapping[str, torch.Tensor] | None = None
) -> Path:
    """Write `pytorch_lora_weights.safetensors`, as `MDMPipeline.load_lora_weights` reads it.

    Args:
        unet: a model with the adapter of `add_lora`.
        output_dir: made if missing.
        state_dict: the model's whole state, where `unet` holds only a part of it (FSDP).

    Returns:
        The file.
    """
    layers = get_peft_model_state_dict(
        unet, state_dict=None if state_dict is None else dict(state_dict), adapter_name=ADAPTER_NAME
    )
    # Without its settings a file is taken to have an alpha that equals the rank.
    MDMPipeline.save_lora_weights(
        output_dir,
        unet_lora_layers={name: value.detach().cpu().contiguous() for name, value in layers.items()},
        unet_lora_adapter_metadata=unet.peft_config[ADAPTER_NAME].to_dict(),
    )
    return Path(output_dir) / "pytorch_lora_weights.safetensors"


def load_lora(unet: NestedUNetModel, folder: str | Path) -> None:
    """Read what `save_lora` wrote, bit for bit, to train on; a model without an adapter gets the saved one's.

    Raises:
        ValueError: the adapter that the model has is not of the saved one's shape.
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
            f"differ, e.g. {different[0]}. Continue with the rank and the target modules it was saved with."
        )
    set_peft_model_state_dict(unet, weights, adapter_name=ADAPTER_NAME)


def _train_adapter_alone(unet: NestedUNetModel) -> None:
    """Adapter weights in fp32, whatever the frozen model is in: small updates would be lost in half precision."""
    for name, parameter in unet.named_parameters():
        is_adapter = _MARK in name
        parameter.requires_grad_(is_adapter)
        if is_adapter:
            parameter.data = parameter.data.float()
