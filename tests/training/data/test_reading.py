# SPDX-License-Identifier: Apache-2.0
"""Batches hold the samples that were asked for, and the nearest usable ones in the places of broken ones."""

import pytest
import torch

from diffusers_mdm.training.data.reading import BatchReader, Request, closed_at_exit, read_batches
from diffusers_mdm.training.data.samples import SampleDecoder
from diffusers_mdm.training.data.skip_budget import SkipBudget
from tests.training.data.memory_source import memory_source


def reader(number: int = 6, broken: tuple[int, ...] = (), max_skips: int = 10, seed: int = 0) -> BatchReader:
    decoder = SampleDecoder(side=4, micro_conditioning={"scale": 64.0})
    return BatchReader(memory_source(number, broken), decoder, seed, max_skips)


def test_rows_are_what_was_asked_for_in_that_order():
    batch, skips = reader()[Request([7, 8, 9], [5, 0, 3])]
    assert batch.positions.tolist() == [7, 8, 9]
    assert batch.class_labels.tolist() == [5, 0, 3]
    assert batch.pixels[:, 1, 0, 0].tolist() == [50, 0, 30]
    assert [caption.rstrip("!") for caption in batch.captions] == ["5", "0", "3"]
    assert batch.micro_conditioning["scale"].tolist() == [8.0, 8.0, 8.0]  # the shorter side before resizing
    assert skips == []


def test_what_is_random_depends_on_seed_and_place_alone():
    captions = [reader()[Request([place], [1])].batch.captions[0] for place in range(40)]
    assert set(captions) == {"1", "1!"}
    together = reader()[Request(list(range(40)), [1] * 40)].batch
    assert together.captions == captions
    assert reader(seed=1)[Request(list(range(40)), [1] * 40)].batch.captions != captions


def test_the_first_usable_substitute_stands_in_and_what_was_skipped_is_told():
    batch, skips = reader(broken=(2, 3))[Request([0, 1], [2, 5])]
    assert batch.class_labels.tolist() == [4, 5]
    assert [(skip.name, skip.reason) for skip in skips] == [("sample 2", "it is broken"), ("sample 3", "it is broken")]


def test_without_a_usable_one_there_is_no_batch():
    batch, skips = reader(4, broken=(0, 1, 2, 3))[Request([0], [1])]
    assert batch is None
    assert [skip.name for skip in skips] == ["sample 1", "sample 2", "sample 3", "sample 0"]
    # So many that the run ends in any case.
    assert len(reader(9, broken=tuple(range(9)), max_skips=2)[Request([0], [1])].skips) == 4


def test_batches_come_in_order_and_leave_the_random_stream_alone():
    requests = [Request([place], [place % 6]) for place in range(9)]
    state = torch.get_rng_state()
    labels = [batch.class_labels.item() for batch in read_batches(reader(), requests, 0, SkipBudget(0))]
    assert labels == [place % 6 for place in range(9)]
    assert torch.equal(torch.get_rng_state(), state)


def test_more_skips_than_the_budget_end_the_reading():
    budget = SkipBudget(1)
    batches = read_batches(reader(broken=(1, 3)), [Request([n], [n]) for n in range(6)], 0, budget)
    assert [next(batches).class_labels.item() for _ in range(3)] == [0, 2, 2]
    with pytest.raises(ValueError, match=r"sample 1.*sample 3"):
        next(batches)


def test_nothing_usable_is_an_error_that_says_how_long_was_looked():
    batches = read_batches(reader(3, broken=(0, 1, 2)), [Request([0], [0])], 0, SkipBudget(5))
    with pytest.raises(ValueError, match=r"in 3 tries; the last one, sample 2, .*it is broken"):
        next(batches)


def test_batches_that_are_closed_at_exit_are_the_same():
    batches = read_batches(reader(), [Request([0], [4])], 0, SkipBudget(0))
    assert closed_at_exit(batches) is batches
    assert next(batches).class_labels.tolist() == [4]
