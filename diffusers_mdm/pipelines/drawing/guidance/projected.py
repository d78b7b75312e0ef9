# SPDX-License-Identifier: Apache-2.0
"""Adaptive projected guidance, APG (Sadat et al. 2024, arXiv:2410.02416)."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch

from diffusers_mdm.pipelines.drawing.guidance.method import GuidanceMethod, LevelStep


@dataclass
class ProjectedGuidance(GuidanceMethod):
    """Push along what changes the picture, less along what only makes it stronger.

    The difference of the two clean predictions is split into a part parallel to the conditional one, which saturates
    colours, and the rest; the parallel part is multiplied by `eta`. Before that the difference may be averaged over
    the steps and bounded (algorithm 1 of the paper).

    Args:
        eta: share of the parallel part; 1, with no bound and no momentum, is plain guidance.
        bound: largest root mean square of the difference of a picture's values, None for no bound. (The paper bounds
            the L2 norm, which grows with the number of pixels; levels differ in it.)
        momentum: how much of the earlier differences is added; the paper's values are negative, such as -0.5.

    Raises:
        ValueError: a bound that is not above 0, a momentum outside of (-1, 1).
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
        """A copy that remembers nothing."""
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
