# SPDX-License-Identifier: Apache-2.0
"""Averaged weights (EMA) in a checkpoint, in the format of diffusers' scripts.

`unet_ema/` has the format of diffusers' `EMAModel.save_pretrained`: a model with the averaged weights, whose config
also contains the counter and the settings of the average. It can be loaded by `EMAModel.from_pretrained(folder,
NestedUNetModel)` and by `NestedUNetModel.from_pretrained(checkpoint, subfolder="unet_ema")`. If the text encoder is
trained, its averages are in `text_encoder_ema/`, in the format of transformers. The averages of LoRA adapters are in
`ema.safetensors`, "<module>//<parameter>"; older checkpoints have all averages there.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

import torch
from safetensors.torch import load_file, save_file
from transformers import PreTrainedModel

from ...models.nested_unet import NestedUNetModel
from .checkpoint_report import CheckpointReport
from .moving_average import Average
from .run import Run

EMA_FILE = "ema.safetensors"

Shadows = Mapping[str, torch.Tensor]


def average_folder(checkpoint: Path, module: str) -> Path:
    """Return the folder of the averages of a trained module."""
    return checkpoint / f"{module}_ema"


def save_averages(run: Run, modules: Mapping[str, Any], averages: Mapping[str, Shadows], checkpoint: Path) -> None:
    """Write the averages of a run into a checkpoint.

    Args:
        run: the run, between two steps.
        modules: the trained modules, not sharded.
        averages: whole CPU tensors of each of them, by parameter name.
        checkpoint: folder of the checkpoint.
    """
    if run.recipe.lora is not None:
        named = {f"{module}//{name}": value for module, shadows in averages.items() for name, value in shadows.items()}
        # In the format, tensors must not share memory.
        save_file({name: value.clone() for name, value in named.items()}, checkpoint / EMA_FILE)
        return
    for module, shadows in averages.items():
        folder = average_folder(checkpoint, module)
        if isinstance(modules[module], NestedUNetModel):
            save_unet(modules[module], run.ema[module], shadows, folder)
        else:
            modules[module].save_pretrained(folder, state_dict=averaged_state(modules[module], shadows))


def save_unet(unet: NestedUNetModel, average: Average, shadows: Shadows, folder: Path) -> None:
    """Write a model with averaged weights, and the settings of diffusers' `EMAModel` in its config."""
    # On the meta device, a new model neither takes memory nor consumes random numbers of the run.
    with torch.device("meta"):
        averaged = cast(NestedUNetModel, type(unet).from_config(unet.config))
    averaged.load_state_dict(shadows, assign=True)
    averaged.register_to_config(**average.settings())
    averaged.save_pretrained(folder)


def averaged_state(module: torch.nn.Module, shadows: Shadows) -> dict[str, torch.Tensor]:
    """Return the state dict of a module with averages instead of its weights; tied weights remain tied."""
    names = {id(parameter): name for name, parameter in module.named_parameters()}
    tied = {name: names[id(parameter)] for name, parameter in module.named_parameters(remove_duplicate=False)}
    return {name: shadows[tied[name]] if name in tied else value for name, value in module.state_dict().items()}


def load_averages(run: Run, checkpoint: Path, report: CheckpointReport) -> None:
    """Read the averages of a checkpoint into a run that already has its modules.

    Raises:
        ValueError: they do not fit the modules.
    """
    expected = run.trained_modules if run.recipe.use_ema else {}
    if set(report.averages) != set(expected):
        raise ValueError(
            f"{checkpoint} has averages of {sorted(report.averages)}, but the recipe trains {sorted(expected)}."
        )
    for module, steps in report.averages.items():
        found, where = read_averages(run, checkpoint, module)
        shadows = {}
        for name, like in run.averaged_parameters(module).items():
            shadow = found.get(name)
            if shadow is None or shadow.shape != like.shape:
                raise ValueError(f"{where} does not fit the weights beside it: {name} differs.")
            shadows[name] = shadow
        run.ema[module] = Average(shadows, steps, foreach=run.options.foreach_ema)


def read_averages(run: Run, checkpoint: Path, module: str) -> tuple[Shadows, Path]:
    """Return the averages of a trained module by parameter name, and the file in which they were found."""
    folder = average_folder(checkpoint, module)
    if not folder.is_dir():
        prefix, file = f"{module}//", checkpoint / EMA_FILE
        named = load_file(file)
        return {key.removeprefix(prefix): value for key, value in named.items() if key.startswith(prefix)}, file
    if module == "unet":
        # Large models are in several files.
        files = sorted(folder.glob("*.safetensors"))
        return {name: value for file in files for name, value in load_file(file).items()}, folder
    encoder = type(cast(PreTrainedModel, run.trained_modules[module])).from_pretrained(folder)
    return {name: parameter.detach() for name, parameter in encoder.named_parameters()}, folder
