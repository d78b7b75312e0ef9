# SPDX-License-Identifier: Apache-2.0
"""Power-function averages of the weights of one module, of several widths."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch

from ....library_internals import subtract_each
from .profiles import exponent_of, share_of_update


@dataclass
class PowerAverages:
    """The power-function averages of a module's weights; see `profiles`.

    Each weight has its own beginning: weights of a new level are averaged from their first update on, and weights that
    were frozen from the first update after that. Until then their averages are their values.

    Attributes:
        shadows: averaged weights, by width (σ_rel) and parameter name.
        since: number of updates of the run when the averaging of each weight began.
        updates: number of updates of the run.
        foreach: update all tensors with a few kernels, which takes memory for all of them at once.
        followed: the weights to average during a stage, by the same names; empty if they are sharded.
    """

    shadows: dict[float, dict[str, torch.Tensor]]
    since: dict[str, int]
    updates: int = 0
    foreach: bool = True
    followed: dict[str, torch.Tensor] = field(default_factory=dict)

    @classmethod
    def beginning_with(cls, weights: Mapping[str, torch.Tensor], sigma_rels: Sequence[float]) -> "PowerAverages":
        """Return averages of these widths that begin with copies of `weights`."""
        shadows = {width: {name: value.clone() for name, value in weights.items()} for width in sigma_rels}
        return cls(shadows, dict.fromkeys(weights, 0))

    @torch.no_grad()
    def update(self, parameters: Mapping[str, torch.Tensor]) -> None:
        """Update all averages with `parameters`, by name; those that are not trained are copied."""
        self.updates += 1
        by_age: dict[int, list[str]] = {}
        for name, value in parameters.items():
            if value.requires_grad:
                by_age.setdefault(self.updates - self.since[name], []).append(name)
                continue
            self.since[name] = self.updates
            for shadows in self.shadows.values():
                shadows[name].copy_(value)
        for width, shadows in self.shadows.items():
            for age, names in by_age.items():
                share = share_of_update(exponent_of(width), age)
                for part in [names] if self.foreach else [[name] for name in names]:
                    subtract_each([shadows[name] for name in part], [parameters[name] for name in part], share)

    def grow(self, parameters: Mapping[str, torch.Tensor]) -> None:
        """Include the parameters that were added; the averaging of these begins with their next update."""
        for width, shadows in self.shadows.items():
            self.shadows[width] = {
                name: shadows[name] if name in shadows else value.detach().clone()
                for name, value in parameters.items()
            }
        self.since = {name: self.since.get(name, self.updates) for name in parameters}

    def to(self, device: torch.device, non_blocking: bool = False) -> None:
        """Move the averages to a device."""
        for width, shadows in self.shadows.items():
            self.shadows[width] = {
                name: value.to(device, non_blocking=non_blocking) for name, value in shadows.items()
            }
