# SPDX-License-Identifier: Apache-2.0
"""Losses by level and quartile of t, in tables that add up over micro-batches, steps and processes.

A mean over all t hides which part of the noise a level has learnt: quartile 1 are the lowest t (nearly clean, the
finish), quartile 4 the highest (nearly noise, what is drawn at all).
"""

import math
from collections.abc import Sequence

import torch

NUM_QUARTILES = 4


def loss_table(
    row_errors: Sequence[torch.Tensor],
    timesteps: torch.Tensor,
    num_train_timesteps: int,
    leave_out_non_finite: bool = True,
) -> torch.Tensor:
    """Sums and numbers of the batch rows' errors, by level and quartile of 0 ... T - 1.

    Tables are added with `+`, and over processes by a sum such as `accelerator.reduce(table, "sum")`. Nothing here
    waits for an accelerator.

    Args:
        row_errors: (B_i,) of each level, innermost first, detached (`PyramidLoss.row_errors`).
        timesteps: (B_0,), in [0, T); level i has the first B_i of them.
        num_train_timesteps: T.
        leave_out_non_finite: do not count errors that are not finite: training skips such steps, and one of them would
            hide the others of the same table.

    Returns:
        (2, levels, 4) float32: sums, and how many rows are in them.
    """
    quartiles = timesteps.long() * NUM_QUARTILES // num_train_timesteps
    belongs = quartiles[:, None] == torch.arange(NUM_QUARTILES, device=timesteps.device)
    sums, counts = [], []
    for errors in row_errors:
        counted = belongs[: len(errors)]
        if leave_out_non_finite:
            counted = counted & errors.isfinite()[:, None]
        sums.append(torch.where(counted, errors.float()[:, None], 0.0).sum(0))
        counts.append(counted.float().sum(0))
    return torch.stack([torch.stack(sums), torch.stack(counts)])


def level_means(table: torch.Tensor) -> list[float]:
    """Mean error of each level over all t, innermost first; NaN for a level without batch rows."""
    # Summed in double precision on the CPU: not every device has it.
    sums, counts = table.cpu().double().sum(-1).tolist()
    return [_mean(total, count) for total, count in zip(sums, counts, strict=True)]


def table_values(table: torch.Tensor, name: str = "loss") -> dict[str, float]:
    """Means as they are logged: `{"loss/level_0": ..., "loss/level_0/quartile_1": ..., ...}`, without empty ones."""
    sums, counts = table.tolist()
    values = {}
    for level, mean in enumerate(level_means(table)):
        if not any(counts[level]):
            continue
        values[f"{name}/level_{level}"] = mean
        for quartile, (total, count) in enumerate(zip(sums[level], counts[level], strict=True), start=1):
            if count:
                values[f"{name}/level_{level}/quartile_{quartile}"] = _mean(total, count)
    return values


def _mean(total: float, count: float) -> float:
    return total / count if count else math.nan
