# SPDX-License-Identifier: Apache-2.0
"""Averaged weights (EMA) of the trained modules: extending, sharding and updating them, and using them in the
modules.
"""

import contextlib
from collections.abc import Iterator, Mapping

import torch

from .moving_average import Average
from .post_hoc.run_averages import grow_power_averages, lay_out_power_averages, update_power_averages
from .run import Run
from .sharding import gathered_like, laid_out_like, part_here, reshard


def grow_averages(run: Run) -> None:
    """Extend the averages after levels or frames were added: the averages of new weights start at their values."""
    for module, average in run.ema.items():
        average.shadows = {
            name: average.shadows[name] if name in average.shadows else value.detach().clone()
            for name, value in run.averaged_parameters(module).items()
        }
    grow_power_averages(run)


def lay_out_averages(run: Run, decay: float) -> None:
    """Create missing averages, and put all on the run's device, sharded like their modules.

    For a sharded module, each process averages its own shards, as plain tensors: the average is computed element by
    element, partly with functions that torch does not define for sharded tensors.
    """
    lay_out_power_averages(run)
    if not run.recipe.use_ema:
        return
    for module in run.trained_modules:
        parameters = run.averaged_parameters(module)
        if module in run.ema:
            average = run.ema[module]
            average.shadows = {
                name: part_here(laid_out_like(average.shadows[name], like)) for name, like in parameters.items()
            }
        else:
            start = {name: part_here(value).detach().clone() for name, value in parameters.items()}
            average = run.ema[module] = Average(start, foreach=run.options.foreach_ema)
        average.decay, average.followed = decay, {} if run.is_sharded else dict(parameters)
        if run.options.offload_ema:
            average.to(torch.device("cpu"))


def update_averages(run: Run) -> None:
    """Update all averages after an optimizer step."""
    for module, average in run.ema.items():
        parameters = average.followed or _parts(run, module)
        if not any(parameter.requires_grad for parameter in parameters.values()):
            continue  # completely frozen, so its average does not change
        if run.options.offload_ema:
            average.to(run.accelerator.device, non_blocking=True)
        average.update(parameters)
        if run.options.offload_ema:
            average.to(torch.device("cpu"))
    if run.power_averages:
        update_power_averages(run)


def whole_averages(run: Run) -> dict[str, dict[str, torch.Tensor]]:
    """Return the averages of each module as whole CPU tensors; every process must call this, since shards are
    gathered.
    """
    return {
        module: {
            name: gathered_like(average.shadows[name], like) for name, like in run.averaged_parameters(module).items()
        }
        for module, average in run.ema.items()
    }


def _parts(run: Run, module: str) -> dict[str, torch.Tensor]:
    """Return this process's parts of the parameters that have averages, sharing their memory."""
    return {name: part_here(parameter) for name, parameter in run.averaged_parameters(module).items()}


@torch.no_grad()
def _fill(run: Run, module: str, values: Mapping[str, torch.Tensor]) -> None:
    for name, part in _parts(run, module).items():
        part.copy_(values[name])


def keep_averages(run: Run) -> None:
    """Replace the weights of the trained modules by their averages permanently."""
    for module, average in run.ema.items():
        _fill(run, module, average.shadows)


@contextlib.contextmanager
def averaged_weights(run: Run) -> Iterator[None]:
    """Use the averaged weights, if there are any, in the trained modules inside the block, in evaluation mode."""
    modules = run.trained_modules
    own = {
        module: {name: part.detach().to("cpu", copy=True) for name, part in _parts(run, module).items()}
        for module in run.ema
    }
    keep_averages(run)
    training = {name: module.training for name, module in modules.items()}
    for module in modules.values():
        module.eval()
    try:
        yield
    finally:
        if run.model is not None:
            reshard(run.model)
        for name, values in own.items():
            _fill(run, name, values)
        for name, module in modules.items():
            module.train(training[name])
