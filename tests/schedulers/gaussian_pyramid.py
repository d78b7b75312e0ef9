# SPDX-License-Identifier: Apache-2.0
"""A pyramid of Gaussian images whose exact denoiser is known in closed form: an instrument for samplers.

The outermost level x is N(0, C), the others are its block averages D^i x, and the noisy levels z^i = alpha_i D^i x +
sigma_i eps^i are seen together. With H the stack of the alpha_i D^i and S the noise's covariance,

    E[x | z] = C H^T (H C H^T + S)^-1 z,

and the clean level i that a perfect network predicts is D^i of that: the levels of an exact prediction agree. Samplers
without thresholds are then linear, so what they draw is Gaussian, and its covariance comes out of one run over a basis
of all noise, with nothing left to chance.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from diffusers_mdm.pyramid import Pyramid, build_pyramid
from diffusers_mdm.schedulers import MatryoshkaScheduler

Denoiser = Callable[[Pyramid, torch.Tensor], Pyramid]


@dataclass(frozen=True)
class GaussianPyramid:
    """Images of one channel with smooth content, and the network that denoises them exactly.

    Attributes:
        sides: of the levels, innermost first.
        std: of every pixel of the outermost level.
        reach: correlation between pixels falls as exp(-distance / reach).
        downs: the matrices D^i, float64, innermost first; the last one is the identity.
        covariance: C.
    """

    sides: Sequence[int] = (2, 4)
    std: float = 0.5
    reach: float = 2.0
    downs: list[torch.Tensor] = field(init=False)
    covariance: torch.Tensor = field(init=False)

    def __post_init__(self) -> None:
        side = self.sides[-1]
        basis = torch.eye(side * side, dtype=torch.float64).reshape(-1, 1, side, side)
        object.__setattr__(self, "downs", [level.flatten(1).T for level in build_pyramid(basis, self.sides)])
        places = torch.cartesian_prod(*[torch.arange(side, dtype=torch.float64)] * 2)
        object.__setattr__(self, "covariance", self.std**2 * torch.exp(-torch.cdist(places, places) / self.reach))

    @property
    def shapes(self) -> list[tuple[int, ...]]:
        """Of one image's levels, with a batch of one."""
        return [(1, 1, side, side) for side in self.sides]

    def posterior_mean(self, noisy: Pyramid, powers: Sequence[float]) -> Pyramid:
        """E[D^i x | z] of the levels that are given, which may be the inner ones alone.

        Args:
            noisy: z, `(B, 1, side, side)` float64.
            powers: signal power of each of these levels.
        """
        downs = self.downs[: len(noisy)]
        seen = torch.cat([power**0.5 * down for power, down in zip(powers, downs, strict=True)])
        spread = torch.cat([torch.full((len(d),), 1 - power) for power, d in zip(powers, downs, strict=True)])
        both = seen @ self.covariance @ seen.T + torch.diag(spread.double())
        mean = torch.cat([level.flatten(1) for level in noisy], 1) @ torch.linalg.solve(both, seen @ self.covariance)
        return [(mean @ down.T).reshape(level.shape) for down, level in zip(downs, noisy, strict=True)]

    def predict(self, scheduler: MatryoshkaScheduler, noisy: Pyramid, timestep: torch.Tensor) -> Pyramid:
        """The velocities that a perfect network predicts."""
        powers = [power[0].item() for power in scheduler.level_alphas_cumprod(noisy, timestep.reshape(1))]
        clean = self.posterior_mean([level.double() for level in noisy], powers)
        # v = alpha eps - sigma x = (alpha z - x) / sigma
        return [
            (power**0.5 * level - x) / (1 - power) ** 0.5 for power, level, x in zip(powers, noisy, clean, strict=True)
        ]

    def exact_covariance(self, num_levels: int | None = None) -> torch.Tensor:
        """Of the inner levels, all pixels in one vector."""
        stack = torch.cat(self.downs[:num_levels])
        return stack @ self.covariance @ stack.T

    def drawn_covariance(self, scheduler: MatryoshkaScheduler, eta: float | None = 0.0, **step: Any) -> torch.Tensor:
        """Of what a scheduler, whose time steps are set, draws with the exact denoiser; `step` goes to its step."""
        sizes = [side * side for side in self.sides]
        timesteps = scheduler.timesteps
        num_draws = 1 if eta == 0 else len(timesteps)
        basis = torch.eye(num_draws * sum(sizes), dtype=torch.float64).split(sum(sizes), dim=1)

        def noise(number: int) -> Pyramid:
            parts = basis[number].split(sizes, dim=1)
            return [part.reshape(-1, 1, side, side) for part, side in zip(parts, self.sides, strict=True)]

        sample = noise(0)
        for number, timestep in enumerate(timesteps, start=1):
            injected = {"variance_noise": noise(number)} if eta != 0 and number < len(timesteps) else {}
            output = self.predict(scheduler, sample, timestep)
            sample = scheduler.step(output, timestep, sample, eta=eta, **injected, **step).prev_sample
        drawn = torch.cat([level.flatten(1) for level in sample], dim=1)
        return drawn.T @ drawn

    def error(self, scheduler: MatryoshkaScheduler, eta: float | None = 0.0, **step: Any) -> float:
        """Relative error of the standard deviations of what is drawn, root mean square over the principal components
        of every level; arguments as of `drawn_covariance`.
        """
        drawn, exact = self.drawn_covariance(scheduler, eta, **step), self.exact_covariance()
        errors, start = [], 0
        for side in self.sides:
            level = slice(start, start := start + side * side)
            variances, components = torch.linalg.eigh(exact[level, level])
            found = (components * (drawn[level, level] @ components)).sum(0)
            errors.append((found / variances).sqrt() - 1)
        return torch.cat(errors).square().mean().sqrt().item()
