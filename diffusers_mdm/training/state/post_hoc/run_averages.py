# SPDX-License-Identifier: Apache-2.0
"""The power-function averages of a run: laying them out on devices, updating, saving and loading them.

In a checkpoint, `power_averages.safetensors` contains them as "<module>//<width>//<parameter>", in full precision, and
`power_averages.json` when the averaging of each parameter began.
"""

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from ...recipe.fields import FieldError
from ..run import Run
from ..sharding import gathered_like, laid_out_like, part_here
from .power_averages import PowerAverages

TENSORS_FILE = "power_averages.safetensors"
COUNTS_FILE = "power_averages.json"

# Whole averages by module, width and parameter name.
WholeAverages = dict[str, dict[float, dict[str, torch.Tensor]]]


def grow_power_averages(run: Run) -> None:
    """Extend the averages after levels or frames were added."""
    for module, average in run.power_averages.items():
        average.grow(run.averaged_parameters(module))


def lay_out_power_averages(run: Run) -> None:
    """Create missing averages, and put all on the run's device, sharded like their modules."""
    if run.recipe.post_hoc_ema is None:
        return
    for module in run.trained_modules:
        parameters = run.averaged_parameters(module)
        if module not in run.power_averages:
            start = {name: part_here(value).detach() for name, value in parameters.items()}
            run.power_averages[module] = PowerAverages.beginning_with(start, run.recipe.post_hoc_ema.sigma_rels)
        else:
            average = run.power_averages[module]
            for width, shadows in average.shadows.items():
                average.shadows[width] = {
                    name: part_here(laid_out_like(shadows[name], like)) for name, like in parameters.items()
                }
        average = run.power_averages[module]
        average.foreach = run.options.foreach_ema
        average.followed = {} if run.is_sharded else dict(parameters)
        if run.options.offload_ema:
            average.to(torch.device("cpu"))


def update_power_averages(run: Run) -> None:
    """Update all averages after an optimizer step."""
    for module, average in run.power_averages.items():
        parameters = average.followed or {
            name: part_here(parameter) for name, parameter in run.averaged_parameters(module).items()
        }
        if run.options.offload_ema:
            average.to(run.accelerator.device, non_blocking=True)
        average.update(parameters)
        if run.options.offload_ema:
            average.to(torch.device("cpu"))


def whole_power_averages(run: Run) -> WholeAverages:
    """Return all averages as whole CPU tensors; every process must call this, since shards are gathered."""
    return {
        module: {
            width: {name: gathered_like(shadows[name], like) for name, like in run.averaged_parameters(module).items()}
            for width, shadows in average.shadows.items()
        }
        for module, average in run.power_averages.items()
    }


def counts(run: Run) -> dict[str, Any]:
    """Return when the averaging of each parameter began, and how many updates there were, by module."""
    return {
        module: {"updates": average.updates, "since": average.since} for module, average in run.power_averages.items()
    }


def save_power_averages(run: Run, averages: WholeAverages, checkpoint: Path) -> None:
    """Write the averages into a checkpoint; nothing without averages."""
    if not averages:
        return
    named = {
        f"{module}//{width}//{name}": value.clone()  # in the format, tensors must not share memory
        for module, by_width in averages.items()
        for width, shadows in by_width.items()
        for name, value in shadows.items()
    }
    save_file(named, checkpoint / TENSORS_FILE)
    (checkpoint / COUNTS_FILE).write_text(json.dumps(counts(run)), encoding="utf-8")


def load_power_averages(run: Run, checkpoint: Path) -> None:
    """Read the averages of a checkpoint into a run that already has its modules.

    Raises:
        ValueError: they do not fit the modules.
    """
    if run.recipe.post_hoc_ema is None:
        return
    tensors, file = load_file(checkpoint / TENSORS_FILE), checkpoint / COUNTS_FILE
    saved = read_counts(json.loads(file.read_text(encoding="utf-8")), str(file))
    for module in run.trained_modules:
        parameters = run.averaged_parameters(module)
        shadows: dict[float, dict[str, torch.Tensor]] = {}
        for width in run.recipe.post_hoc_ema.sigma_rels:
            shadows[width] = {}
            for name, like in parameters.items():
                found = tensors.get(f"{module}//{width}//{name}")
                if found is None or found.shape != like.shape or name not in saved.get(module, {}).get("since", {}):
                    raise ValueError(
                        f"{checkpoint / TENSORS_FILE} does not fit the weights beside it: {name} differs."
                    )
                shadows[width][name] = found
        run.power_averages[module] = PowerAverages(shadows, saved[module]["since"], saved[module]["updates"])


def read_counts(saved: Any, where: str) -> dict[str, Any]:
    """Check what `counts` returned, as read from a file, and return it.

    Raises:
        ValueError: something is missing or of the wrong type; the message begins with `where`.
    """
    try:
        for module, entry in saved.items():
            updates, since = entry["updates"], entry["since"]
            if type(updates) is not int or not all(type(n) is int and 0 <= n <= updates for n in since.values()):
                raise FieldError(module, "has numbers that do not fit together.")
    except (AttributeError, KeyError, TypeError) as error:
        raise ValueError(f"{where} has another structure than expected: {error!r}.") from error
    except FieldError as error:
        raise ValueError(f"{where}: {error}") from error
    return dict(saved)
