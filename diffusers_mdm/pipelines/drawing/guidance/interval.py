# SPDX-License-Identifier: Apache-2.0
"""Guidance in an interval of noise levels only (Kynkäänniemi et al. 2024, arXiv:2404.07724)."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import torch

from diffusers_mdm.pipelines.drawing.guidance.method import GuidanceMethod, LevelStep, PlainGuidance


@dataclass
class IntervalGuidance(GuidanceMethod):
    """Guide a level while its log SNR is in an interval; outside, the conditional prediction is used.

    At high noise guidance reduces diversity; at low noise it has no effect and only costs a second call. Each level
    enters and leaves the interval at a different timestep, since larger levels have lower log SNRs.

    Args:
        low: log SNR at which guidance begins.
        high: log SNR at which it ends.
        method: the method inside the interval.

    Raises:
        ValueError: the interval is empty.
    """

    low: float = -math.inf
    high: float = math.inf
    method: GuidanceMethod = field(default_factory=PlainGuidance)

    def __post_init__(self) -> None:
        if not self.low < self.high:
            raise ValueError(
                f"`IntervalGuidance` has `low` {self.low} and `high` {self.high}; expected increasing log SNRs, "
                f"such as -4 and 4."
            )
        if not isinstance(self.method, GuidanceMethod):
            raise TypeError(
                f"`IntervalGuidance` has `method` of type {type(self.method).__name__}; expected a `GuidanceMethod`."
            )

    def needs_other(self, at: LevelStep) -> bool:
        """Return whether the method needs the other prediction and the step is inside the interval."""
        return self.low <= at.log_snr <= self.high and self.method.needs_other(at)

    def guide(self, conditional: torch.Tensor, other: torch.Tensor, at: LevelStep) -> torch.Tensor:
        """See `GuidanceMethod.guide`."""
        return self.method.guide(conditional, other, at)
