# SPDX-License-Identifier: Apache-2.0
"""Power-function averages of weights over training (Karras et al. 2024, "Analyzing and Improving the Training Dynamics
of Diffusion Models", section 3), and how one is made of others.

    t        number of updates since the averaging began
    γ        exponent: the average at t is the integral of τ^γ θ(τ) over τ in [0, t], divided by that of τ^γ
    σ_rel    width of an average: the standard deviation of its profile p(τ) = (γ + 1) τ^γ / t^(γ+1), relative to t
"""

import functools
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

# That of the plain mean, γ = 0.
LARGEST_SIGMA_REL = 12**-0.5


class Profile(NamedTuple):
    """A power-function average: its width, and the number of updates when it was taken."""

    sigma_rel: float
    updates: int


class Combination(NamedTuple):
    """A weighted sum of averages that comes close to another one.

    Attributes:
        weights: the weight of each; their sum is 1.
        error: the distance between the two profiles, relative to the norm of the wanted one.
    """

    weights: np.ndarray
    error: float


@functools.cache
def exponent_of(sigma_rel: float) -> float:
    """Return γ of the average of this width, between 0 and `LARGEST_SIGMA_REL`.

    The width is σ_rel² = (γ + 1) / ((γ + 2)² (γ + 3)), so γ is the largest root of a cubic polynomial.

    Raises:
        ValueError: there is no such average.
    """
    if not 0 < sigma_rel <= LARGEST_SIGMA_REL:
        raise ValueError(
            f"`sigma_rel` must be above 0 and at most {LARGEST_SIGMA_REL:.4f}, the width of the mean of all of "
            f"training, got {sigma_rel!r}."
        )
    roots = np.roots([1, 7, 16 - sigma_rel**-2, 12 - sigma_rel**-2])
    return max(0.0, float(roots.real.max()))


def share_of_update(exponent: float, updates: int) -> float:
    """Return the share of the new weights in the `updates`-th update, 1 - (1 - 1/t)^(γ+1) (section 3.1); the first is
    1.
    """
    return float(1 - (1 - 1 / updates) ** (exponent + 1))


def combine(kept: Sequence[Profile], wanted: Profile) -> Combination:
    """Return the weighted sum of kept averages whose profile is closest to that of the wanted one in the least-squares
    sense (section 3.2), among those whose weights sum to 1, as those of any average.
    """
    count = len(kept)
    # Minimise |p - Σ x_i p_i|² with Σ x_i = 1: the inner products, bordered by the constraint and its multiplier.
    system = np.ones((count + 1, count + 1))
    system[:count, :count] = inner_products(kept, kept)
    system[count, count] = 0
    right = np.array([*inner_products(kept, [wanted])[:, 0], 1.0])
    weights = np.linalg.lstsq(system, right, rcond=None)[0][:count]
    norm = inner_products([wanted], [wanted])[0, 0]
    distance = weights @ system[:count, :count] @ weights - 2 * weights @ right[:count] + norm
    return Combination(weights, float(np.sqrt(max(0.0, distance) / norm)))


def inner_products(ones: Sequence[Profile], others: Sequence[Profile]) -> np.ndarray:
    """Return the integrals of the products of profiles, `(len(ones), len(others))` (section 3.2).

    Up to the smaller number of updates s both are powers: (γ_1 + 1) (γ_2 + 1) / (γ_1 + γ_2 + 1) (s / t)^γ / t, where t
    and γ are those of the profile with more updates.
    """
    exponents = [np.array([exponent_of(profile.sigma_rel) for profile in profiles]) for profiles in (ones, others)]
    updates = [np.array([float(profile.updates) for profile in profiles]) for profiles in (ones, others)]
    first, second = exponents[0][:, None], exponents[1][None]
    shorter = np.minimum(updates[0][:, None], updates[1][None])
    longer = np.maximum(updates[0][:, None], updates[1][None])
    exponent = np.where(updates[0][:, None] <= updates[1][None], second, first)
    factor = (first + 1) * (second + 1) / (first + second + 1)
    return np.asarray(factor * (shorter / longer) ** exponent / longer)
