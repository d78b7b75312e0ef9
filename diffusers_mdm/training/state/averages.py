# SPDX-License-Identifier: Apache-2.0
"""Averaged weights (EMA) of the trained modules: grown, sharded, updated, and lent for drawing and saving."""

import contextlib
from collections.abc import Iterator, Mapping

import torch

from .moving_average import Average
from .run import Run
from .sharding import gathered_like, laid_out_like, part_here, reshard


def grow_averages(run: Run) -> None:
    """Follow modules that have grown: new weights join as they are, wherever they stand among the old ones."""
    for module, average in run.ema.items():
        average.shadows = {
            name: average.shadows[name] if name in average.shadows else value.detach().clone()
            for name, value in run.averaged_parameters(module).items()
        }


def lay_out_averages(run: Run, decay: float) -> None:
    """Give every trained module its average, on the run's device and sharded as the module is; new ones start here.

    Of a sharded module it is the average of what this process has, as plain tensors: it is computed entry by entry, in
    part with functions that torch does not define for sharded tensors.
    """
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
    """Move every average towards its module's weights, after an optimizer step."""
    for module, average in run.ema.items():
        parameters = average.followed or _parts(run, module)
        if not any(parameter.requires_grad for parameter in parameters.values()):
            continue  # frozen as a whole: its average is what it is
        if run.options.offload_ema:
            average.to(run.accelerator.device, non_blocking=True)
        average.update(parameters)
        if run.options.offload_ema:
            average.to(torch.device("cpu"))


def whole_averages(run: Run) -> dict[str, dict[str, torch.Tensor]]:
    """The averages of each module in whole CPU tensors; call this on every process, since shards are gathered."""
    return {
        module: {
            name: gathered_like(average.shadows[name], like) for name, like in run.averaged_parameters(module).items()
        }
        for module, average in run.ema.items()
    }


def _parts(run: Run, module: str) -> dict[str, torch.Tensor]:
    """What this process holds of the parameters that have averages, in their memory."""
    return {name: part_here(parameter) for name, parameter in run.averaged_parameters(module).items()}


@torch.no_grad()
def _fill(run: Run, module: str, values: Mapping[str, torch.Tensor]) -> None:
    for name, part in _parts(run, module).items():
        part.copy_(values[name])


def keep_averages(run: Run) -> None:
    """Give the trained modules their averaged weights, for good."""
    for module, average in run.ema.items():
        _fill(run, module, average.shadows)


@contextlib.contextmanager
def averaged_weights(run: Run) -> Iterator[None]:
    """Inside the block the trained modules hold their averaged weights, if there are any, in evaluation mode."""
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
