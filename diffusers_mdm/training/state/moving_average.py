# SPDX-License-Identifier: Apache-2.0
"""The moving average (EMA) of weights, by name."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch

from ...library_internals import subtract_each

_POWER = 0.75  # of the warm-up


@dataclass
class Average:
    """The exponential moving average of a module's weights, which computes as diffusers' `EMAModel` does.

    Attributes:
        shadows: the averaged weights, by the names that the module's parameters have.
        steps: how often it was updated.
        decay: weight of the past in an update, at most.
        foreach: update all tensors in a few kernels, which takes memory for all of them at once.
        followed: the weights that it follows while a stage trains them, by the same names; none where they are
            sharded, and each process has to be asked for its part.
    """

    shadows: dict[str, torch.Tensor]
    steps: int = 0
    decay: float = 0.9999
    foreach: bool = True
    followed: dict[str, torch.Tensor] = field(default_factory=dict)

    @property
    def decay_now(self) -> float:
        """Weight of the past in the last update: 0 in the first, then 1 - steps^-3/4 up to `decay`."""
        return min(1 - self.steps**-_POWER, self.decay) if self.steps > 1 else 0.0

    @torch.no_grad()
    def update(self, parameters: Mapping[str, torch.Tensor]) -> None:
        """Move towards `parameters`, which have the names of the shadows; take over those that do not learn."""
        self.steps += 1
        share = 1 - self.decay_now
        pairs = [(shadow, parameters[name]) for name, shadow in self.shadows.items()]
        for shadow, value in pairs:
            if not value.requires_grad:
                shadow.copy_(value)
            elif not self.foreach:
                shadow.sub_(share * (shadow - value))
        if self.foreach:
            shadows = [shadow for shadow, value in pairs if value.requires_grad]
            values = [value for _, value in pairs if value.requires_grad]
            subtract_each(shadows, values, share)

    def settings(self) -> dict[str, Any]:
        """What diffusers' `EMAModel` saves beside the weights: its counter, and settings that compute the same."""
        return {
            "decay": self.decay,
            "min_decay": 0.0,
            "optimization_step": self.steps,
            "update_after_step": 0,
            "use_ema_warmup": True,
            "inv_gamma": 1.0,
            "power": _POWER,
        }

    def to(self, device: torch.device, non_blocking: bool = False) -> None:
        """Move the shadows to a device."""
        self.shadows = {name: value.to(device, non_blocking=non_blocking) for name, value in self.shadows.items()}
