# SPDX-License-Identifier: Apache-2.0
"""Guidance in an interval of noise levels only (Kynkäänniemi et al. 2024, arXiv:2404.07724)."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import torch

from diffusers_mdm.pipelines.drawing.guidance.method import GuidanceMethod, LevelStep, PlainGuidance


@dataclass
class IntervalGuidance(GuidanceMethod):
    """Guide a level while its own log SNR is in an interval; outside, the conditional prediction stands.

    At high noise guidance costs variety, at low noise it does nothing but cost a second call. Each level enters and
    leaves the interval at its own time, since larger levels have lower log SNRs.

    Args:
        low: where guidance begins, log SNR.
        high: where it ends.
        method: the method inside of the interval.

    Raises:
        ValueError: the interval is empty.
    """

    low: float = -math.inf
    high: float = math.inf
    method: GuidanceMethod = field(default_factory=PlainGuidance)

    def __post_init__(self) -> None:
        if not self.low < self.high:
            raise ValueError(
                f"`IntervalGuidance` has `low` {self.low} and `high` {self.high}; expected log SNRs that rise, such "
                "as -4 and 4."
            )
        if not isinstance(self.method, GuidanceMethod):
            raise TypeError(
                f"`IntervalGuidance` has `method` of type {type(self.method).__name__}; expected a `GuidanceMethod`."
            )

    def needs_other(self, at: LevelStep) -> bool:
        """Inside of the interval, where the method does."""
        return self.low <= at.log_snr <= self.high and self.method.needs_other(at)

    def guide(self, conditional: torch.Tensor, other: torch.Tensor, at: LevelStep) -> torch.Tensor:
        """See `GuidanceMethod.guide`."""
        return self.method.guide(conditional, other, at)
