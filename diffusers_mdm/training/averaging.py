# SPDX-License-Identifier: Apache-2.0
"""Averaged weights (EMA) of the trained modules: made, and lent to the modules for drawing and saving."""

import contextlib
from collections.abc import Iterator

import torch
from diffusers.training_utils import EMAModel

from .run import Run


def new_average(module: torch.nn.Module, decay: float) -> EMAModel:
    """An average of `module`'s parameters whose decay warms up as 1 - (1 + step)^-3/4 to `decay`."""
    return EMAModel(module.parameters(), decay=decay, use_ema_warmup=True, power=0.75, foreach=True)


@contextlib.contextmanager
def averaged_weights(run: Run) -> Iterator[None]:
    """Inside the block the trained modules hold their averaged weights, and are in evaluation mode."""
    modules = run.trained_modules
    for name, average in run.ema.items():
        average.store(modules[name].parameters())
        average.copy_to(modules[name].parameters())
    training = {name: module.training for name, module in modules.items()}
    for module in modules.values():
        module.eval()
    try:
        yield
    finally:
        for name, average in run.ema.items():
            average.restore(modules[name].parameters())
        for name, module in modules.items():
            module.train(training[name])
