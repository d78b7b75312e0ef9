# SPDX-License-Identifier: Apache-2.0
"""Modules that run layers of other modules in place of their own, and what these layers are called.

A borrowed layer belongs to the module that lends it and is registered there alone. So it has one name and one place in
files, optimizers and averages.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn


class LayerBorrower(nn.Module):
    """A module whose layers may be those of another one.

    A borrowed layer leaves `None` in its place among the submodules. What stands in a plain dict is no submodule.
    """

    def __init__(self) -> None:
        super().__init__()
        self.borrowed: dict[str, nn.Module] = {}

    def layer(self, kind: str, key: int | str | None = None) -> Any:
        """The layer that runs as `kind`, or as entry `key` of the list or dict `kind`: own or borrowed."""
        own: Any = getattr(self, kind)
        if key is not None:
            own = own[key]
        return self.borrowed[_place(kind, key)] if own is None else own

    def borrow(self, layer: nn.Module, kind: str, key: int | str | None = None) -> None:
        """Drop the own layer and run `layer`."""
        if key is None:
            setattr(self, kind, None)
        else:
            getattr(self, kind)[key] = None
        self.borrowed[_place(kind, key)] = layer


def _place(kind: str, key: int | str | None) -> str:
    return kind if key is None else f"{kind}.{key}"


def borrowed_names(model: nn.Module) -> dict[str, str]:
    """Name of every layer that a level borrows, as if it were its own → name of the layer it is."""
    owners = {id(module): name for name, module in model.named_modules()}
    return {
        f"{name}.{place}": owners[id(layer)]
        for name, module in model.named_modules()
        if isinstance(module, LayerBorrower)
        for place, layer in module.borrowed.items()
    }


def unshared_state_dict(model: nn.Module, state: Mapping[str, torch.Tensor] | None = None) -> dict[str, torch.Tensor]:
    """The state dict of the same model without sharing: a shared tensor stands under each of its names.

    Args:
        model: whose levels share layers.
        state: its state dict; read off the model by default.
    """
    unshared = dict(model.state_dict() if state is None else state)
    for name, owner in borrowed_names(model).items():
        parts = [key for key in unshared if key.startswith(f"{owner}.")]
        unshared |= {name + key.removeprefix(owner): unshared[key] for key in parts}
    return unshared
