# SPDX-License-Identifier: Apache-2.0
"""The recipe fields for averages whose width is chosen after training."""

from dataclasses import dataclass

from .fields import COUNT, Range, check_ranges


@dataclass(frozen=True)
class PostHocEmaRecipe:
    """Keep power-function averages of the weights (Karras et al. 2024), from whose snapshots
    `training/reconstruct_ema.py` makes averages of any width.
    """

    sigma_rels: tuple[float, ...] = (0.05, 0.10)  # widths of the averages, relative to the length of training
    snapshot_steps: int = 500  # write a snapshot every so many steps, and at the end of every stage
    snapshots_total_limit: int | None = 16  # thin them out evenly when there are more; None: keep all

    def __post_init__(self) -> None:
        # Up to the width of the plain mean, 12^-1/2.
        widths = Range(0.01, 0.28)
        check_ranges(self, {"sigma_rels": widths, "snapshot_steps": COUNT, "snapshots_total_limit": Range(2)})
        if len(set(self.sigma_rels)) != len(self.sigma_rels) or len(self.sigma_rels) < 2:
            raise ValueError(
                f"`sigma_rels` must be at least two different widths, such as [0.05, 0.1], got "
                f"{list(self.sigma_rels)}; averages of other widths are made of them."
            )
