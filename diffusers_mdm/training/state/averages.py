# SPDX-License-Identifier: Apache-2.0
"""Averaged weights (EMA) of the trained modules: made, grown, sharded, and lent for drawing and saving."""

import contextlib
from collections.abc import Iterator, Sequence

import torch
from diffusers.training_utils import EMAModel

from .run import Run
from .sharding import gathered_like, laid_out_like, part_here, reshard


def new_average(parameters: Sequence[torch.Tensor], decay: float, foreach: bool = True) -> EMAModel:
    """An average of `parameters` whose decay warms up as 1 - (1 + step)^-3/4 to `decay`."""
    return EMAModel(parameters, decay=decay, use_ema_warmup=True, power=0.75, foreach=foreach)


def averaged_names(run: Run, module: str) -> list[str]:
    """Names of `run.averaged_parameters(module)`."""
    averaged = {id(parameter) for parameter in run.averaged_parameters(module)}
    return [name for name, value in run.trained_modules[module].named_parameters() if id(value) in averaged]


@contextlib.contextmanager
def averages_follow_growth(run: Run) -> Iterator[None]:
    """Around whatever makes trained modules grow: their averages go to where parameters of their names then are.

    New parameters join as they are.
    """
    before = {name: averaged_names(run, name) for name in run.ema}
    yield
    for name, average in run.ema.items():
        shadows = dict(zip(before[name], average.shadow_params, strict=True))
        average.shadow_params = [
            shadows[key] if key in shadows else value.detach().clone()
            for key, value in zip(averaged_names(run, name), run.averaged_parameters(name), strict=True)
        ]


def lay_out_averages(run: Run, decay: float) -> None:
    """Give every trained module its average, on the run's device and sharded as the module is; new ones start here.

    Of a sharded module the average is of this process' shards, as plain tensors: what diffusers' `EMAModel` computes
    it does entry by entry, some of it with functions that torch does not define for sharded tensors.
    """
    if not run.recipe.use_ema:
        return
    for name in run.trained_modules:
        parameters = run.averaged_parameters(name)
        if name in run.ema:
            average = run.ema[name]
            shadows = [
                part_here(laid_out_like(shadow, like))
                for shadow, like in zip(average.shadow_params, parameters, strict=True)
            ]
        else:
            average = run.ema[name] = new_average([], decay, run.options.foreach_ema)
            shadows = [part_here(value).detach().clone() for value in parameters]
        average.decay, average.shadow_params = decay, shadows
        if run.options.offload_ema:
            average.to(torch.device("cpu"))


def update_averages(run: Run) -> None:
    """Move every average towards its module's weights, after an optimizer step."""
    for name, average in run.ema.items():
        parameters = _parts(run, name)
        if not any(parameter.requires_grad for parameter in parameters):
            continue  # frozen as a whole: its average is what it is
        if run.options.offload_ema:
            average.to(run.accelerator.device, non_blocking=True)
        average.step(parameters)
        if run.options.offload_ema:
            average.to(torch.device("cpu"))


def whole_averages(run: Run) -> dict[str, list[torch.Tensor]]:
    """The averages in whole CPU tensors, in the order of `run.averaged_parameters`; every process has to ask."""
    return {
        name: [
            gathered_like(shadow, like)
            for shadow, like in zip(average.shadow_params, run.averaged_parameters(name), strict=True)
        ]
        for name, average in run.ema.items()
    }


def _parts(run: Run, name: str) -> list[torch.Tensor]:
    """What this process holds of the parameters that have averages, in their memory."""
    return [part_here(parameter) for parameter in run.averaged_parameters(name)]


@contextlib.contextmanager
def averaged_weights(run: Run) -> Iterator[None]:
    """Inside the block the trained modules hold their averaged weights, if there are any, in evaluation mode."""
    modules = run.trained_modules
    for name, average in run.ema.items():
        average.store(_parts(run, name))
        average.copy_to(_parts(run, name))
    training = {name: module.training for name, module in modules.items()}
    for module in modules.values():
        module.eval()
    try:
        yield
    finally:
        if run.model is not None:
            reshard(run.model)
        for name, average in run.ema.items():
            average.restore(_parts(run, name))
        for name, module in modules.items():
            module.train(training[name])
