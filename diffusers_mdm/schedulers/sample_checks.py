# SPDX-License-Identifier: Apache-2.0
"""What a scheduler is handed: shapes that belong together, finite values, timesteps in range."""

from __future__ import annotations

import math
import numbers
from collections.abc import Sequence
from typing import Any

import torch

from ..pyramid import Pyramid, as_pyramid


def matching_levels(
    tensors: torch.Tensor | Sequence[torch.Tensor], levels: Sequence[torch.Tensor], name: str
) -> Pyramid:
    """`tensors` as levels of the same shapes as `levels`.

    Raises:
        ValueError: another number of levels, other shapes, or other devices.
    """
    others, _ = as_pyramid(tensors)
    shapes, expected = [tuple(level.shape) for level in others], [tuple(level.shape) for level in levels]
    if shapes != expected:
        raise ValueError(
            f"`{name}` has levels of the shapes {shapes}, innermost first; the sample has {expected}. Both must agree."
        )
    places, expected_places = [str(level.device) for level in others], [str(level.device) for level in levels]
    if places != expected_places:
        raise ValueError(
            f"`{name}` is on {', '.join(places)}; the sample is on {', '.join(expected_places)}. Move it."
        )
    return others


def check_finite(levels: Sequence[torch.Tensor], timestep: int, name: str) -> None:
    """Refuse NaN and infinity.

    Raises:
        ValueError: names the timestep and the levels (0 = innermost).
    """
    # One answer for all levels: an accelerator is waited for once a step.
    finite = torch.stack([torch.isfinite(level).all() for level in levels]).tolist()
    if not all(finite):
        broken = ", ".join(str(index) for index, good in enumerate(finite) if not good)
        raise ValueError(
            f"`{name}` holds NaN or infinity at timestep {timestep}, level {broken} (0 = innermost). Try float32 or "
            "bfloat16 if the network runs in float16; otherwise look at its weights and inputs."
        )


def whole_timestep(timestep: int | float | torch.Tensor, num_train_timesteps: int) -> int:
    """A timestep as an int.

    Raises:
        ValueError: several timesteps, not a whole number, or outside [0, num_train_timesteps).
    """
    if isinstance(timestep, torch.Tensor):
        if timestep.numel() != 1:
            raise ValueError(
                f"`timestep` has shape {tuple(timestep.shape)}; a reverse step takes all rows and levels from one "
                "timestep, pass a single number."
            )
        timestep = timestep.item()
    is_number = isinstance(timestep, numbers.Real) and not isinstance(timestep, bool) and math.isfinite(timestep)
    if not is_number or timestep != int(timestep) or not 0 <= timestep < num_train_timesteps:
        raise ValueError(f"`timestep` is {timestep!r}; expected a whole number from 0 to {num_train_timesteps - 1}.")
    return int(timestep)


def as_timesteps(timesteps: Any) -> torch.Tensor:
    """Timesteps for every row, as a tensor.

    Raises:
        ValueError: they are neither a tensor nor numbers.
    """
    try:
        return torch.as_tensor(timesteps)
    except (TypeError, ValueError, RuntimeError) as error:
        raise ValueError(
            f"`timesteps` are of type {type(timesteps).__name__}; expected a tensor of whole numbers, one for each "
            "row of level 0, or a single one."
        ) from error


def check_eta(eta: Any) -> None:
    """Refuse an `eta` that is neither None nor a number from 0 to 1."""
    is_number = isinstance(eta, numbers.Real) and not isinstance(eta, bool)
    if eta is not None and not (is_number and 0 <= eta <= 1):
        raise ValueError(f"`eta` is {eta!r}; expected 0 (deterministic) to 1 (ancestral), or None (ancestral).")


def in_full_precision(tensor: torch.Tensor) -> torch.Tensor:
    """The tensor, in float32 if it was in half precision."""
    return tensor.float() if tensor.dtype in (torch.float16, torch.bfloat16) else tensor
