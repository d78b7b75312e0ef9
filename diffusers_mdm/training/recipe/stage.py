# SPDX-License-Identifier: Apache-2.0
"""One stage of a recipe: which levels learn, from how many pictures a step, how fast, and until when."""

import itertools
import math
from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class PlateauRecipe:
    """When a stage has stopped learning: the smoothed validation loss of its outermost level no longer falls.

    It is measured every `every_steps` steps. A measurement gains if it is below the best one by the share `min_gain`;
    after `patience` measurements in a row without gain, and not before `min_steps`, the stage ends.
    """

    every_steps: int
    patience: int = 5
    min_gain: float = 0.01
    smoothing: float = 0.5  # weight of the past in the running mean
    min_steps: int = 0

    def __post_init__(self) -> None:
        if self.every_steps < 1 or self.patience < 1:
            raise ValueError("`every_steps` and `patience` must be at least 1.")
        if not 0 <= self.smoothing < 1 or not 0 <= self.min_gain < 1 or self.min_steps < 0:
            raise ValueError("`smoothing` and `min_gain` must lie in [0, 1), `min_steps` must not be negative.")


@dataclass(frozen=True)
class StageRecipe:
    """One stage of training: the inner `levels` levels. Lists are innermost first.

    It ends after `steps` optimizer steps, after `images` pictures over all processes, or when `until_plateau` says
    so; at least one of them is given, and the first to come counts.
    """

    name: str
    levels: int
    batch_size: int  # images per forward pass and process
    learning_rate: float
    steps: int | None = None
    images: int | None = None
    until_plateau: PlateauRecipe | None = None
    gradient_accumulation_steps: int = 1
    as_pictures: bool = False  # train the levels of a model of clips before they have frames, on pictures
    joint_pictures: int = 0  # pictures beside the clips of every forward pass; `batch_size` does not count them
    lr_scheduler: Literal[
        "constant", "constant_with_warmup", "linear", "cosine", "cosine_with_restarts", "polynomial"
    ] = "cosine"
    lr_warmup_steps: int = 0
    lr_num_cycles: int = 1  # of "cosine_with_restarts"
    lr_power: float = 1.0  # of "polynomial"
    level_learning_rate_scales: tuple[float, ...] | None = None  # over the stage's rate; None: 1 for every level
    frozen_levels: int = 0  # so many inner levels, with what they share (text, classes), do not learn
    loss_weighting: Literal["epsilon", "v"] = "epsilon"
    snr_gamma: float | None = None  # min-SNR weighting (Hang et al. 2023)
    level_weights: tuple[float, ...] | None = None  # None: 1 for every level
    new_level_ramp_steps: int = 0  # over which the weight of levels that are new in this stage rises from 0
    batch_fractions: tuple[float, ...] | None = None  # share of the batch's rows a level sees; None: all of them
    shift_power: float | None = None  # of the noise schedule while this stage trains; None: the scheduler's own
    noise_offset: float = 0.0
    caption_dropout: float = 0.1  # share of captions replaced by "", for guidance without a classifier
    timestep_bias_strategy: Literal["none", "earlier", "later"] = "none"  # draw low or high t more often
    timestep_bias_portion: float = 0.25  # share of the range of t that is drawn more often
    timestep_bias_multiplier: float = 1.0  # how many times as often
    ema_decay: float = 0.9999  # upper limit, reached by a warm-up
    seed: int = 0

    def __post_init__(self) -> None:
        for field in ("levels", "batch_size", "gradient_accumulation_steps", "lr_num_cycles"):
            if getattr(self, field) < 1:
                raise ValueError(f"`{field}` must be at least 1, got {getattr(self, field)}.")
        self._check_end()
        for field in ("level_weights", "batch_fractions", "level_learning_rate_scales"):
            column = getattr(self, field)
            if column is not None and len(column) != self.levels:
                raise ValueError(f"`{field}` needs {self.levels} entries, one a level, got {len(column)}.")
        if not 0 <= self.frozen_levels < self.levels:
            raise ValueError(
                f"`frozen_levels` must be 0 to {self.levels - 1}, so that a level learns; got {self.frozen_levels}."
            )
        if not 0 <= self.caption_dropout < 1 or not 0 <= self.ema_decay < 1:
            raise ValueError("`caption_dropout` and `ema_decay` must lie in [0, 1).")
        for field in ("new_level_ramp_steps", "noise_offset", "joint_pictures"):
            if getattr(self, field) < 0:
                raise ValueError(f"`{field}` must not be negative, got {getattr(self, field)}.")
        if self.snr_gamma is not None and self.snr_gamma <= 0:
            raise ValueError(f"`snr_gamma` must be positive, got {self.snr_gamma}.")
        if not 0 < self.timestep_bias_portion <= 1 or self.timestep_bias_multiplier <= 0:
            raise ValueError("`timestep_bias_portion` must lie in (0, 1], `timestep_bias_multiplier` above 0.")
        self._check_batch_fractions()

    def _check_end(self) -> None:
        if self.steps is None and self.images is None and self.until_plateau is None:
            raise ValueError("a stage needs an end: give `steps`, `images` or `until_plateau`.")
        for field in ("steps", "images"):
            value = getattr(self, field)
            if value is not None and value < 1:
                raise ValueError(f"`{field}` must be at least 1, got {value}.")
        decays = self.lr_scheduler not in ("constant", "constant_with_warmup")
        if decays and self.steps is None and self.images is None:
            raise ValueError(
                f"`lr_scheduler` {self.lr_scheduler!r} falls towards a known last step: give `steps` or `images` as "
                "an upper limit beside `until_plateau`, or use 'constant_with_warmup'."
            )

    def _check_batch_fractions(self) -> None:
        fractions = self.fractions
        thins = all(0 < outer <= inner for inner, outer in itertools.pairwise(fractions))
        if fractions[0] != 1.0 or not thins:
            raise ValueError(f"`batch_fractions` must start with 1.0 and not grow outwards, got {list(fractions)}.")
        if self.rows_per_level[-1] < 1:
            raise ValueError(f"`batch_fractions` leave level {self.levels - 1} no row of {self.batch_size} images.")

    @property
    def weights(self) -> tuple[float, ...]:
        """Loss weight of each level, innermost first."""
        return self.level_weights or (1.0,) * self.levels

    @property
    def fractions(self) -> tuple[float, ...]:
        """Share of the batch each level sees, innermost first."""
        return self.batch_fractions or (1.0,) * self.levels

    @property
    def rows_per_level(self) -> tuple[int, ...]:
        """Rows B_i of a batch that level i sees, innermost first."""
        return tuple(int(fraction * self.batch_size) for fraction in self.fractions)

    @property
    def images_per_step(self) -> int:
        """Images of one optimizer step on one process."""
        return self.batch_size * self.gradient_accumulation_steps

    def max_steps(self, num_processes: int = 1) -> int | None:
        """Optimizer steps after which the stage ends at the latest; None if only its plateau ends it."""
        limits = [] if self.steps is None else [self.steps]
        if self.images is not None:
            limits.append(math.ceil(self.images / (self.images_per_step * num_processes)))
        return min(limits) if limits else None
