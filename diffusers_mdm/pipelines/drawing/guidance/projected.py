# SPDX-License-Identifier: Apache-2.0
"""Adaptive projected guidance, APG (Sadat et al. 2024, arXiv:2410.02416)."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch

from diffusers_mdm.pipelines.drawing.guidance.method import GuidanceMethod, LevelStep


@dataclass
class ProjectedGuidance(GuidanceMethod):
    """Guide with less weight on the component that only saturates colours.

    The difference of the two clean predictions is split into a component parallel to the conditional one, which
    saturates colours, and the rest; the parallel component is multiplied by `eta`. Before that, the difference can be
    accumulated over steps and bounded (algorithm 1 of the paper).

    Args:
        eta: factor on the parallel component; 1, without bound and momentum, is plain guidance.
        bound: upper bound of the root mean square of an image's difference, None for no bound. (The paper bounds the
            L2 norm, which grows with the number of pixels and so differs between levels.)
        momentum: factor with which earlier differences are added; the paper's values are negative, such as -0.5.

    Raises:
        ValueError: the bound is not above 0, or the momentum is outside (-1, 1).
    """

    eta: float = 0.0
    bound: float | None = None
    momentum: float = 0.0
    _earlier: torch.Tensor | None = field(default=None, init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        if self.bound is not None and not self.bound > 0:
            raise ValueError(f"`ProjectedGuidance` has `bound` {self.bound}; expected a number above 0, or None.")
        if not -1 < self.momentum < 1:
            raise ValueError(f"`ProjectedGuidance` has `momentum` {self.momentum}; expected a number in (-1, 1).")

    def new(self) -> ProjectedGuidance:
        """Return a copy without state."""
        return ProjectedGuidance(self.eta, self.bound, self.momentum)

    def guide(self, conditional: torch.Tensor, other: torch.Tensor, at: LevelStep) -> torch.Tensor:
        """See `GuidanceMethod.guide`."""
        axes = tuple(range(1, conditional.ndim))
        clean = at.clean(conditional)
        difference = clean - at.clean(other)
        if self.momentum != 0:
            if self._earlier is not None:
                difference = difference + self.momentum * self._earlier
            self._earlier = difference
        if self.bound is not None:
            size = difference.square().mean(dim=axes, keepdim=True).sqrt()
            difference = difference * (self.bound / size.clamp(min=self.bound))
        squared_length = clean.square().sum(dim=axes, keepdim=True).clamp(min=torch.finfo(clean.dtype).tiny)
        parallel = (difference * clean).sum(dim=axes, keepdim=True) / squared_length * clean
        return at.prediction(clean + (at.scale - 1) * (difference - (1 - self.eta) * parallel))
