# SPDX-License-Identifier: Apache-2.0
"""CFG-Zero* (Fan et al. 2025, arXiv:2503.18886)."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from diffusers_mdm.pipelines.drawing.guidance.method import GuidanceMethod, LevelStep


@dataclass
class ZeroStarGuidance(GuidanceMethod):
    """Guide with an optimally scaled unconditional prediction: s u + w (c - s u), s = <c, u> / <u, u>.

    s is the factor that brings the unconditional velocity closest to the conditional one, for each sample separately.

    Args:
        num_zero_steps: number of first steps at which the velocity is set to 0, so that the sample remains noise
            (section 4.2 of the paper, for undertrained models).

    Raises:
        ValueError: the number of steps is negative.
    """

    num_zero_steps: int = 0

    def __post_init__(self) -> None:
        if self.num_zero_steps < 0:
            raise ValueError(f"`ZeroStarGuidance` has `num_zero_steps` {self.num_zero_steps}; expected 0 or more.")

    def needs_other(self, at: LevelStep) -> bool:
        """Return whether the other prediction is needed, which is not so at steps with zero velocity."""
        return at.step >= self.num_zero_steps and super().needs_other(at)

    def combine(self, conditional: torch.Tensor, other: torch.Tensor | None, at: LevelStep) -> torch.Tensor:
        """See `GuidanceMethod.combine`."""
        if at.step < self.num_zero_steps:
            return at.prediction_of_velocity(torch.zeros_like(conditional))
        return super().combine(conditional, other, at)

    def guide(self, conditional: torch.Tensor, other: torch.Tensor, at: LevelStep) -> torch.Tensor:
        """See `GuidanceMethod.guide`."""
        towards, away = at.velocity(conditional), at.velocity(other)
        axes = tuple(range(1, away.ndim))
        squared_length = away.square().sum(dim=axes, keepdim=True).clamp(min=torch.finfo(away.dtype).tiny)
        away = (towards * away).sum(dim=axes, keepdim=True) / squared_length * away
        return at.prediction_of_velocity(away + at.scale * (towards - away))
