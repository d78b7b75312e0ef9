# SPDX-License-Identifier: Apache-2.0
"""The averages (EMA) in a checkpoint, as the scripts of diffusers save them.

`unet_ema/` is what `EMAModel.save_pretrained` of diffusers writes: a model with the averaged weights, in whose config
the counter and the settings of the average stand beside its own keys. Both `EMAModel.from_pretrained(folder,
NestedUNetModel)` and `NestedUNetModel.from_pretrained(checkpoint, subfolder="unet_ema")` read it. A text encoder that
is trained has its averages in `text_encoder_ema/`, as transformers saves it. The averages of LoRA adapters stand in
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
    """Where the averages of a trained module are."""
    return checkpoint / f"{module}_ema"


def save_averages(run: Run, modules: Mapping[str, Any], averages: Mapping[str, Shadows], checkpoint: Path) -> None:
    """Write the averages of a run beside its weights.

    Args:
        run: between two steps.
        modules: the trained modules, whole.
        averages: whole CPU tensors of each of them, by the names of its parameters.
        checkpoint: folder.
    """
    if run.recipe.lora is not None:
        named = {f"{module}//{name}": value for module, shadows in averages.items() for name, value in shadows.items()}
        # The format wants each tensor in memory of its own.
        save_file({name: value.clone() for name, value in named.items()}, checkpoint / EMA_FILE)
        return
    for module, shadows in averages.items():
        folder = average_folder(checkpoint, module)
        if isinstance(modules[module], NestedUNetModel):
            save_unet(modules[module], run.ema[module], shadows, folder)
        else:
            modules[module].save_pretrained(folder, state_dict=averaged_state(modules[module], shadows))


def save_unet(unet: NestedUNetModel, average: Average, shadows: Shadows, folder: Path) -> None:
    """Write a model of averaged weights, and in its config what diffusers' `EMAModel` wants to know of the average."""
    # On the meta device a new model neither takes memory nor draws random numbers, which would miss in the run.
    with torch.device("meta"):
        averaged = cast(NestedUNetModel, type(unet).from_config(unet.config))
    averaged.load_state_dict(shadows, assign=True)
    averaged.register_to_config(**average.settings())
    averaged.save_pretrained(folder)


def averaged_state(module: torch.nn.Module, shadows: Shadows) -> dict[str, torch.Tensor]:
    """The state dict of a module with averages in place of its weights; what is tied stays tied."""
    names = {id(parameter): name for name, parameter in module.named_parameters()}
    tied = {name: names[id(parameter)] for name, parameter in module.named_parameters(remove_duplicate=False)}
    return {name: shadows[tied[name]] if name in tied else value for name, value in module.state_dict().items()}


def load_averages(run: Run, checkpoint: Path, report: CheckpointReport) -> None:
    """Read the averages of a checkpoint, whose modules the run has already.

    Raises:
        ValueError: they are not those of the modules.
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
    """The averages of a trained module by the names of its parameters, and where they were found."""
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
