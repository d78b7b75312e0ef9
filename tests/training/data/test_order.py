# SPDX-License-Identifier: Apache-2.0
import itertools

import pytest

from diffusers_mdm.training.data.order import BatchOrder, PositionedBatches, ShuffledNumbers, epoch_order
from diffusers_mdm.training.seeds import derive_seed


def steps_of(order: BatchOrder, number: int, start: int = 0) -> list[list[list[int]]]:
    """Micro-batches of `number` steps on one process."""
    stream = order.micro_batches(start)
    return [list(itertools.islice(stream, order.accumulation)) for _ in range(number)]


@pytest.mark.parametrize(("batch", "accumulation", "world"), [(8, 1, 1), (4, 1, 2), (4, 2, 1), (2, 2, 2), (1, 8, 1)])
def test_a_step_takes_the_same_places_whatever_it_is_made_of(batch, accumulation, world):
    processes = [steps_of(BatchOrder(batch, accumulation, rank, world), number=3) for rank in range(world)]
    for step in range(3):
        places = sorted(place for process in processes for micro in process[step] for place in micro)
        assert places == list(range(step * 8, step * 8 + 8))


@pytest.mark.parametrize(("batch", "accumulation", "world"), [(4, 1, 2), (4, 2, 1), (2, 2, 2)])
def test_the_first_rows_of_all_batches_are_the_first_places(batch, accumulation, world):
    """What an outer level with half of the rows sees does not depend on the layout."""
    processes = [steps_of(BatchOrder(batch, accumulation, rank, world), number=1)[0] for rank in range(world)]
    first = sorted(place for process in processes for micro in process for place in micro[: batch // 2])
    assert first == [0, 1, 2, 3]


def test_later_steps_continue_the_stream():
    order = BatchOrder(3, 2, rank=1, world=2)
    assert steps_of(order, 5)[3:] == steps_of(order, 2, start=3)


def test_every_row_comes_once_an_epoch_in_another_order():
    rows = ShuffledNumbers(7, seed=3)
    first, second = ([rows.number_at(place) for place in range(start, start + 7)] for start in (0, 7))
    assert sorted(first) == sorted(second) == list(range(7))
    assert first != second
    assert rows.number_at(2) == first[2]  # also when asked out of order
    assert ShuffledNumbers(7, seed=4).number_at(0) == epoch_order(7, 4, 0)[0]


def test_batches_pair_places_with_rows():
    order = BatchOrder(2, world=2, rank=1, seed=5)
    rows = ShuffledNumbers(6, 5)
    batches = list(itertools.islice(PositionedBatches(6, order, start_step=1), 3))
    assert batches == [[(place, rows.number_at(place)) for place in pair] for pair in ((5, 7), (9, 11), (13, 15))]


def test_seeds_of_neighbours_are_unrelated():
    seeds = {derive_seed(*numbers) for numbers in itertools.product(range(4), repeat=3)}
    assert len(seeds) == 64
    assert all(0 <= seed < 2**63 for seed in seeds)
    assert derive_seed(2**40) != derive_seed(0)
