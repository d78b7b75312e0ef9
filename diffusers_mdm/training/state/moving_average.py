# SPDX-License-Identifier: Apache-2.0
"""The moving average (EMA) of weights, by name."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch

from ...library_internals import subtract_each

_POWER = 0.75  # exponent of the warm-up


@dataclass
class Average:
    """The exponential moving average of a module's weights, computed like diffusers' `EMAModel`.

    Attributes:
        shadows: the averaged weights, by parameter name.
        steps: number of updates.
        decay: maximum weight of the previous average in an update.
        foreach: update all tensors with a few kernels, which takes memory for all of them at once.
        followed: the weights to average during a stage, by the same names; empty if they are sharded, in which case
            each process has its own parts.
    """

    shadows: dict[str, torch.Tensor]
    steps: int = 0
    decay: float = 0.9999
    foreach: bool = True
    followed: dict[str, torch.Tensor] = field(default_factory=dict)

    @property
    def decay_now(self) -> float:
        """Return the weight of the previous average in the last update: 0 in the first, then 1 - steps^-3/4 up to
        `decay`.
        """
        return min(1 - self.steps**-_POWER, self.decay) if self.steps > 1 else 0.0

    @torch.no_grad()
    def update(self, parameters: Mapping[str, torch.Tensor]) -> None:
        """Update the average with `parameters`, by name; those that are not trained are copied."""
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
        """Return what diffusers' `EMAModel` saves besides the weights: its counter, and equivalent settings."""
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
        """Move the averages to a device."""
        self.shadows = {name: value.to(device, non_blocking=non_blocking) for name, value in self.shadows.items()}
