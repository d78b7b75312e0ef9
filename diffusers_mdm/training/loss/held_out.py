# SPDX-License-Identifier: Apache-2.0
"""The loss on held-out pictures with fixed noise and fixed t: the same quantity at every step and in every stage.

What is measured is the plain squared error of v of each level, whatever weights and t the training prefers. Picture k
of n is looked at with one t, T (k' + 1/2) / n rounded down with k' from a fixed permutation, so that all n together
cover 0 ... T - 1 evenly; its noise depends on the seed and its record in the data set alone, and the levels draw it
from the innermost outwards. So the numbers of the inner levels do not depend on how many levels surround them. (Those
of outer levels do depend on the scheduler's `shift_power`, which decides how much noise a t means there.)
"""

import contextlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Generic, Protocol, TypeVar, cast

import torch

from ...pyramid import Pyramid, pyramid_noise
from ...schedulers.scheduling_matryoshka import MatryoshkaScheduler
from ..seeds import derive_seed
from .pyramid_loss import NUM_QUARTILES, loss_table, pyramid_loss


class HasPixels(Protocol):
    """A batch, as the measurement looks at it."""

    @property
    def pixels(self) -> torch.Tensor:
        """uint8 (B, 3, S, S), of clips (B, 3, F, S, S)."""


BatchT = TypeVar("BatchT", bound=HasPixels)
Predict = Callable[[Pyramid, torch.Tensor, BatchT], Sequence[torch.Tensor]]


@dataclass(frozen=True)
class HeldOutSamples(Generic[BatchT]):
    """Which pictures are measured, and with which t.

    Args:
        load: gives the batch of the records with these numbers; the same ones always have the same pixels (no random
            crop or flip).
        num_records: size of the held-out set.
        num_images: how many of them to measure at most, spread evenly over the set.
        seed: of noise and t.
    """

    load: Callable[[list[int]], BatchT]
    num_records: int
    num_images: int = 64
    seed: int = 0

    def __post_init__(self) -> None:
        if self.num_records < 1 or self.num_images < 1:
            raise ValueError(
                f"The held-out set has {self.num_records} pictures, of which {self.num_images} shall be measured; "
                "both must be at least 1."
            )

    def __len__(self) -> int:
        return min(self.num_records, self.num_images)

    def record(self, index: int) -> int:
        """Number in the held-out set of picture `index`."""
        return index * self.num_records // len(self)

    def timesteps(self, num_train_timesteps: int) -> torch.Tensor:
        """The t of every picture, (len(self),) int64. Permuted, because sets are often sorted by what they show."""
        generator = torch.Generator().manual_seed(derive_seed(self.seed, 0))
        strata = torch.randperm(len(self), generator=generator)
        return (2 * strata + 1) * num_train_timesteps // (2 * len(self))

    def noise(self, records: Sequence[int], shapes: Sequence[Sequence[int]], device: torch.device) -> Pyramid:
        """The noise of these records, levels `shapes`, innermost first; drawn on the CPU, equal on every device."""
        generators = [torch.Generator().manual_seed(derive_seed(self.seed, 1, record)) for record in records]
        return pyramid_noise(shapes, generators, device=device)


@torch.no_grad()
def validation_loss_table(
    predict: Predict[BatchT],
    scheduler: MatryoshkaScheduler,
    samples: HeldOutSamples[BatchT],
    clean_levels: Callable[[torch.Tensor], Pyramid],
    num_levels: int,
    *,
    batch_size: int = 8,
    rank: int = 0,
    world: int = 1,
    device: torch.device | str = "cpu",
    modules: Iterable[torch.nn.Module] = (),
) -> torch.Tensor:
    """Measure this process' share, pictures rank, rank + world, ...

    Every process calls `predict` equally often with equally many batch rows, as sharded models need; those beyond the
    last picture are not counted. The global random stream is left alone.

    Args:
        predict: v of every level from the noisy pyramid, timesteps (B,) and the batch; all levels have all batch rows.
        scheduler: adds the noise; the stage's, with its shift.
        samples: what is measured.
        clean_levels: the clean pyramid of loaded pixels, the same each time.
        num_levels: how many inner levels to measure. Pictures that are loaded at the side of the whole recipe's
            outermost level in every stage give the inner levels equal pixels; loaded at a smaller side, they are
            resized by another way.
        batch_size: pictures of one call.
        rank: this process' number.
        world: number of processes.
        device: where to compute.
        modules: what `predict` runs, set to evaluation mode meanwhile.

    Returns:
        A table for `level_means` and `table_values`, to be summed over processes first; see `loss_table`. Predictions
        that are not finite make it so too.
    """
    device = torch.device(device)
    num_train_timesteps = len(scheduler)
    all_timesteps = samples.timesteps(num_train_timesteps)
    table = torch.zeros(2, num_levels, NUM_QUARTILES, device=device)
    with evaluation_mode(modules):
        for indices, counted in process_shares(len(samples), batch_size, rank, world):
            records = [samples.record(index) for index in indices]
            batch = samples.load(records)
            if len(batch.pixels) != len(records):
                raise ValueError(
                    f"`load` gave {len(batch.pixels)} pictures for {len(records)} records; expected one for each."
                )
            clean = clean_levels(batch.pixels.to(device))[:num_levels]
            noise = samples.noise(records, [level.shape for level in clean], device)
            timesteps = all_timesteps[indices].to(device)
            noisy = cast(Pyramid, scheduler.add_noise(clean, noise, timesteps))
            predictions = scheduler.velocities_of(predict(noisy, timesteps, batch), clean, noisy, timesteps)
            velocities = cast(Pyramid, scheduler.get_velocity(clean, noise, timesteps))
            alphas = scheduler.level_alphas_cumprod(clean, timesteps)
            errors = pyramid_loss(predictions, velocities, alphas, [1.0] * num_levels, "v").row_errors
            errors = tuple(level[:counted] for level in errors)
            table += loss_table(errors, timesteps[:counted], num_train_timesteps, leave_out_non_finite=False)
    return table


def process_shares(number: int, batch_size: int, rank: int, world: int) -> Iterator[tuple[list[int], int]]:
    """Batches of the indices of one process and how many of each count, equal in number and size on all processes.

    The share of a process is rank, rank + world, ...; where the last of them is missing, index 0 fills its place.
    """
    share = [index if index < number else 0 for index in range(rank, -(-number // world) * world, world)]
    real = len(range(rank, number, world))
    for start in range(0, len(share), batch_size):
        indices = share[start : start + batch_size]
        yield indices, max(0, min(len(indices), real - start))


@contextlib.contextmanager
def evaluation_mode(modules: Iterable[torch.nn.Module]) -> Iterator[None]:
    """Set modules to evaluation inside the block, and every part of them back to what it was."""
    parts = [(part, part.training) for module in modules for part in module.modules()]
    for part, _ in parts:
        part.training = False
    try:
        yield
    finally:
        for part, training in parts:
            part.training = training
