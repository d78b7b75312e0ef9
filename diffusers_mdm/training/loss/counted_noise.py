# SPDX-License-Identifier: Apache-2.0
"""Random numbers computed from (key, number) alone, for all samples of a batch at once.

A `torch.Generator` per sample makes random numbers that do not depend on the rest of the batch, but a GPU would spend
most of a small model's step waiting for hundreds of them. A counter-based generator needs none: the n-th number of a
sample is a hash of its key and n. The hash is the output function of SplitMix64 (Steele, Lea, Flood 2014, "Fast
splittable pseudorandom number generators"); normal numbers follow by the Box-Muller transform.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch

from ..seeds import SPLIT_MIX_FACTORS, SPLIT_MIX_STEP


def _signed(number: int) -> int:
    """Return the signed 64-bit integer with the last 64 bits of a number."""
    return (number + 2**63) % 2**64 - 2**63


# As signed 64-bit integers, whose products wrap around as unsigned ones do.
_STEP = _signed(SPLIT_MIX_STEP)
_FACTORS = tuple(map(_signed, SPLIT_MIX_FACTORS))


def stream_keys(keys: torch.Tensor, stream: int) -> torch.Tensor:
    """Return the keys of an independent stream of every sample.

    Args:
        keys: (B,) int64.
        stream: its number.
    """
    return _mixed(_mixed(keys.clone()) + _signed((stream + 1) * _FACTORS[0]))


def uniform_numbers(keys: torch.Tensor, count: int) -> torch.Tensor:
    """Return `count` uniform numbers in [0, 1) for every sample, (B, count) float64, on the CPU.

    Args:
        keys: (B,) int64.
        count: numbers per sample.
    """
    return _logical_shift(_counted(keys, count), 11).cpu().double() * 2.0**-53


def normal_numbers(keys: torch.Tensor, shape: Sequence[int]) -> torch.Tensor:
    """Return N(0, 1) numbers, float32 of shape (B, *shape), on the device of the keys.

    A sample's numbers depend on its key only. Their absolute values are below 6.7.

    Args:
        keys: (B,) int64.
        shape: shape of one sample.
    """
    total = math.prod(shape)
    bits = _counted(keys, (total + 1) // 2)
    # (0, 1], whose logarithm is finite
    radius = (_logical_shift(bits, 32) + 1).float().mul_(2.0**-32).log_().mul_(-2).sqrt_()
    angle = (bits & 0xFFFFFFFF).float().mul_(2 * math.pi * 2.0**-32)
    pairs = torch.cat([radius * angle.cos(), radius * angle.sin()], dim=1)
    return pairs[:, :total].reshape(len(keys), *shape)


def _counted(keys: torch.Tensor, count: int) -> torch.Tensor:
    steps = torch.arange(1, count + 1, dtype=torch.int64, device=keys.device) * _STEP
    return _mixed(keys[:, None] + steps)


def _mixed(state: torch.Tensor) -> torch.Tensor:
    """Apply SplitMix64's output function in place."""
    state ^= _logical_shift(state, 30)
    state *= _FACTORS[0]
    state ^= _logical_shift(state, 27)
    state *= _FACTORS[1]
    state ^= _logical_shift(state, 31)
    return state


def _logical_shift(values: torch.Tensor, places: int) -> torch.Tensor:
    """Shift right and fill with zeros, where `>>` of signed integers repeats the sign."""
    return (values >> places) & (2 ** (64 - places) - 1)
