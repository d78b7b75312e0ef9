# SPDX-License-Identifier: Apache-2.0
"""Images by number are the same whether they are kept in memory or read each time, and kept ones are read once."""

import itertools

import pytest
import torch

from diffusers_mdm.training.data import numbered
from diffusers_mdm.training.data.numbered import CaptionedImages, ShuffledImages
from diffusers_mdm.training.data.order import BatchOrder
from diffusers_mdm.training.data.samples import SampleDecoder
from diffusers_mdm.training.data.skip_budget import SkipBudget
from tests.training.data.memory_source import memory_source

NUMBER = 6
DECODER = SampleDecoder(side=4, micro_conditioning={"scale": 64.0})


def images(broken: tuple[int, ...] = (), limit: int = 10, decoder: SampleDecoder = DECODER) -> CaptionedImages:
    return CaptionedImages(memory_source(NUMBER, broken), decoder, SkipBudget(limit))


@pytest.fixture
def read_each_time(monkeypatch) -> CaptionedImages:
    monkeypatch.setattr(numbered, "cache_limit_bytes", lambda: 0)
    return images()


def test_kept_and_read_images_are_the_same(read_each_time, monkeypatch):
    monkeypatch.undo()
    kept = images()
    assert (read_each_time.kept, kept.kept is None) == (None, False)
    one, other = (some.load([4, 0, 5], [31, 32, 33], seed=2) for some in (kept, read_each_time))
    assert torch.equal(one.pixels, other.pixels)
    assert one.captions == other.captions
    assert torch.equal(one.positions, other.positions)
    assert torch.equal(one.class_labels, other.class_labels)
    assert torch.equal(one.micro_conditioning["scale"], other.micro_conditioning["scale"])


def test_kept_images_are_read_once():
    kept = images()
    for _ in range(3):
        kept.load([1, 2, 1])
    assert kept.source.reads == {1: 1, 2: 1}


def test_what_is_random_is_not_kept():
    assert images(decoder=SampleDecoder(side=4, random_crop=True)).kept is None


def test_a_broken_image_is_its_neighbour_and_counted_once():
    kept = images(broken=(2,))
    for _ in range(2):
        assert kept.load([2]).class_labels.tolist() == [3]
    assert list(kept.skipped.reasons) == ["sample 2"]


@pytest.mark.parametrize("is_kept", [True, False])
def test_too_many_broken_ones_are_an_error(is_kept, request):
    some = images(tuple(range(NUMBER)), limit=3)
    some.kept = some.kept if is_kept else None
    with pytest.raises(ValueError, match=r"`max_skipped_images`|no usable picture"):
        some.load([0])


@pytest.mark.parametrize("is_kept", [True, False])
def test_an_epoch_has_every_image_once_and_can_be_entered_anywhere(is_kept, monkeypatch):
    if not is_kept:
        monkeypatch.setattr(numbered, "cache_limit_bytes", lambda: 0)
    order = BatchOrder(batch_size=2, seed=5)
    stream = ShuffledImages(images())
    whole = list(itertools.islice(stream.batches(order), 6))
    labels = [batch.class_labels.tolist() for batch in whole]
    epochs = [sorted(itertools.chain.from_iterable(part)) for part in (labels[:3], labels[3:])]
    assert epochs == [list(range(NUMBER))] * 2
    again = list(itertools.islice(stream.batches(order, start_step=4), 2))
    assert [batch.class_labels.tolist() for batch in again] == labels[4:]
    assert [batch.captions for batch in again] == [batch.captions for batch in whole[4:]]
    assert whole[0].positions.tolist() == [0, 1]


def test_moved_images_are_the_same():
    moved, there = images(), images()
    order = BatchOrder(batch_size=2, seed=3)
    shuffled = ShuffledImages(moved)
    moved.kept.move_to(torch.device("cpu"))
    shuffled.prefer(torch.device("cpu"))  # as for a GPU; does nothing here
    pairs = zip(shuffled.batches(order), ShuffledImages(there).batches(order), strict=False)
    for one, other in itertools.islice(pairs, 4):
        assert torch.equal(one.pixels, other.pixels)
        assert torch.equal(one.class_labels, other.class_labels)


def test_the_memory_for_images_is_shared_by_the_processes_of_a_machine(monkeypatch):
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "1")
    whole = numbered.cache_limit_bytes()
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "4")
    assert numbered.cache_limit_bytes() == max(whole // 4, 512 * 2**20)
