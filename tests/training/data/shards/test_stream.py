# SPDX-License-Identifier: Apache-2.0
"""Processes share shards without gaps or repetition, and a stream can be entered at any place."""

import itertools

import pytest

from diffusers_mdm.training.data.order import BatchOrder
from diffusers_mdm.training.data.shards.index import TarSample
from diffusers_mdm.training.data.shards.stream import MAX_SPARES, Block, ShardStream, shares_of, shuffled
from diffusers_mdm.training.data.skip_budget import SkipBudget
from tests.training.image_files import write_tar

SHARDS, SAMPLES = 3, 5


def sample(number: int) -> TarSample:
    return TarSample("path", "shard", str(number), ())


@pytest.fixture(scope="module")
def shards(tmp_path_factory) -> list[str]:
    folder = tmp_path_factory.mktemp("shards")
    return [
        str(write_tar(folder / f"{shard}.tar", [(f"{shard}-{number}", {"txt": ""}) for number in range(SAMPLES)]))
        for shard in range(SHARDS)
    ]


def stream(shards: list[str], buffer: int = 4, **order: int) -> ShardStream:
    return ShardStream(shards, BatchOrder(**{"batch_size": 2, "seed": 3, **order}), buffer, SkipBudget(0), 0)


def keys(places, number: int) -> list[str]:
    return [block.samples[place].key for block, place in itertools.islice(places, number)]


@pytest.mark.parametrize("world", [1, 2, 3, 4])
@pytest.mark.parametrize("num_shards", [1, 2, 3, 7])
def test_every_sample_belongs_to_one_process(num_shards, world):
    owners = [
        (share.shard, number)
        for rank in range(world)
        for share in shares_of(num_shards, 0, rank, world)
        for number in range(share.phase, 12, share.stride)
    ]
    assert sorted(owners) == sorted(itertools.product(range(num_shards), range(12)))
    counts = {len(shares_of(num_shards, 0, rank, world)) for rank in range(world)}
    assert len(counts) == 1  # all have as much to do, but for the lengths of shards


def test_an_epoch_has_every_sample_once_in_another_order(shards):
    number = SHARDS * SAMPLES
    seen = keys(stream(shards).places(0), 2 * number)
    expected = sorted(f"{shard}-{place}" for shard in range(SHARDS) for place in range(SAMPLES))
    assert sorted(seen[:number]) == sorted(seen[number:]) == expected
    assert seen[:number] != seen[number:]
    assert keys(stream(shards, seed=4).places(0), number) != seen[:number]


@pytest.mark.parametrize("skip", [1, 4, 14, 15, 16, 33])
def test_a_stream_goes_on_at_any_place(shards, skip):
    whole = keys(stream(shards).places(0), skip + 8)
    assert keys(stream(shards).places(skip), 8) == whole[skip:]


def test_requests_name_places_samples_and_spares(shards):
    first, second = itertools.islice(stream(shards).requests(), 2)
    assert (first.positions, second.positions) == ([0, 1], [2, 3])
    (again,) = itertools.islice(stream(shards).requests(start_step=1), 1)
    assert again.references == second.references
    assert first.spares
    assert not {spare.key for spare in first.spares} - {f"{s}-{n}" for s in range(SHARDS) for n in range(SAMPLES)}


def test_spares_are_what_follows_then_the_block_before():
    block = Block([sample(number) for number in range(4)], [sample(number) for number in (7, 8)])
    assert [spare.key for spare in block.spares_after(1)] == ["2", "3", "0", "7", "8"]
    long = Block([sample(number) for number in range(3 * MAX_SPARES)], [sample(0)])
    assert len(long.spares_after(0)) == MAX_SPARES


def test_a_shuffled_block_has_the_same_samples():
    samples = [sample(number) for number in range(20)]
    mixed = shuffled(samples, 1)
    assert sorted(mixed) == sorted(samples)
    assert mixed == shuffled(samples, 1)
    assert mixed != samples
    assert mixed != shuffled(samples, 2)


def test_a_process_without_samples_says_so(tmp_path):
    empty = [str(write_tar(tmp_path / "0.tar", []))]
    with pytest.raises(ValueError, match=r"no samples.*more samples than processes"):
        next(stream(empty).places(0))
