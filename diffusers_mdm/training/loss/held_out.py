# SPDX-License-Identifier: Apache-2.0
"""The validation loss: held-out data with fixed noise and fixed t, so that it is comparable between steps and stages.

It is the unweighted squared error of v of each level, regardless of the weights and the distribution of t in training.
Sample k of n is measured at a single t, T (k' + 1/2) / n rounded down, with k' from a fixed permutation, so that all n
together cover 0 ... T - 1 evenly. Its noise depends only on the seed and its record in the data set, and is sampled
from the innermost level outwards, so the numbers of inner levels do not depend on how many levels surround them.
(Those of outer levels do depend on the scheduler's `shift_power`, which determines how much noise a t means there.)
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
    """The part of a batch that is needed here."""

    @property
    def pixels(self) -> torch.Tensor:
        """uint8 (B, 3, S, S), or for clips (B, 3, F, S, S)."""


BatchT = TypeVar("BatchT", bound=HasPixels)
Predict = Callable[[Pyramid, torch.Tensor, BatchT], Sequence[torch.Tensor]]


@dataclass(frozen=True)
class HeldOutSamples(Generic[BatchT]):
    """The held-out samples that are measured, with their t and noise.

    Args:
        load: loads the records with the given numbers as a batch, always with the same pixels (no random crop or
            flip).
        num_records: size of the held-out set.
        num_images: maximum number of samples, spread evenly over the set.
        seed: seed of noise and t.
    """

    load: Callable[[list[int]], BatchT]
    num_records: int
    num_images: int = 64
    seed: int = 0

    def __post_init__(self) -> None:
        if self.num_records < 1 or self.num_images < 1:
            raise ValueError(
                f"The held-out set has {self.num_records} samples, of which {self.num_images} are to be measured; "
                f"both must be at least 1."
            )

    def __len__(self) -> int:
        return min(self.num_records, self.num_images)

    def record(self, index: int) -> int:
        """Return the record number of sample `index`."""
        return index * self.num_records // len(self)

    def timesteps(self, num_train_timesteps: int) -> torch.Tensor:
        """Return t of every sample, (len(self),) int64, permuted because data sets are often sorted by content."""
        generator = torch.Generator().manual_seed(derive_seed(self.seed, 0))
        strata = torch.randperm(len(self), generator=generator)
        return (2 * strata + 1) * num_train_timesteps // (2 * len(self))

    def noise(self, records: Sequence[int], shapes: Sequence[Sequence[int]], device: torch.device) -> Pyramid:
        """Sample the noise of records, with levels of `shapes`, innermost first; on the CPU, so that it is equal on
        all devices.
        """
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
    """Measure this process's samples: rank, rank + world, ...

    Every process calls `predict` equally often with equal batch sizes, as sharded models require; samples beyond the
    last one are not counted. The global random generator is not used.

    Args:
        predict: returns v of every level, given the noisy pyramid, timesteps (B,) and the batch; all levels have the
            whole batch.
        scheduler: the stage's scheduler, with its shift, which adds the noise.
        samples: the samples to measure.
        clean_levels: computes the clean pyramid of loaded pixels, the same each time.
        num_levels: number of inner levels to measure. Images should be loaded with the side of the recipe's outermost
            level in every stage: loaded at a smaller side they are resized differently, and inner levels get other
            pixels.
        batch_size: samples per call.
        rank: number of this process.
        world: number of processes.
        device: device for the computation.
        modules: the modules that `predict` runs, which are set to evaluation mode meanwhile.

    Returns:
        A table for `level_means` and `table_values`, to be summed over processes first; see `loss_table`. It is not
        finite if a prediction is not.
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
                    f"`load` returned {len(batch.pixels)} samples for {len(records)} records; expected one for each."
                )
            clean = clean_levels(batch.pixels.to(device))[:num_levels]
            noise = samples.noise(records, [level.shape for level in clean], device)
            timesteps = all_timesteps[indices].to(device)
            noisy = cast(Pyramid, scheduler.add_noise(clean, noise, timesteps))
            predictions = scheduler.velocities_of(predict(noisy, timesteps, batch), clean, noisy, timesteps)
            velocities = cast(Pyramid, scheduler.get_velocity(clean, noise, timesteps))
            alphas = scheduler.level_alphas_cumprod(clean, timesteps)
            errors = pyramid_loss(predictions, velocities, alphas, [1.0] * num_levels, "v").sample_errors
            errors = tuple(level[:counted] for level in errors)
            table += loss_table(errors, timesteps[:counted], num_train_timesteps, leave_out_non_finite=False)
    return table


def process_shares(number: int, batch_size: int, rank: int, world: int) -> Iterator[tuple[list[int], int]]:
    """Yield batches of a process's indices, and how many of each count; equal in number and size on all processes.

    The indices of a process are rank, rank + world, ...; if the last one is missing, index 0 is used instead.
    """
    share = [index if index < number else 0 for index in range(rank, -(-number // world) * world, world)]
    real = len(range(rank, number, world))
    for start in range(0, len(share), batch_size):
        indices = share[start : start + batch_size]
        yield indices, max(0, min(len(indices), real - start))


@contextlib.contextmanager
def evaluation_mode(modules: Iterable[torch.nn.Module]) -> Iterator[None]:
    """Set modules to evaluation mode inside the block, and restore the mode of every submodule afterwards."""
    parts = [(part, part.training) for module in modules for part in module.modules()]
    for part, _ in parts:
        part.training = False
    try:
        yield
    finally:
        for part, training in parts:
            part.training = training
