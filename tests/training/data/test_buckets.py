# SPDX-License-Identifier: Apache-2.0
"""Buckets of images, and the order of batches: each of one bucket, in proportion, however a step is divided."""

import itertools
from collections import Counter

import pytest
from PIL import Image

from diffusers_mdm.training.data.buckets import (
    BucketRequests,
    bucket_of_steps,
    nearest_bucket,
    sort_into_buckets,
    stored_size,
)
from diffusers_mdm.training.data.order import BatchOrder
from diffusers_mdm.training.data.samples import Sample
from diffusers_mdm.training.data.skip_budget import UnusableSampleError
from tests.training.image_files import encoded, png

SIZES = ((12, 20), (16, 16), (20, 12))
MEMBERS = [list(range(5)), [], list(range(5, 15))]


def requests(start=0, number=12, **fields):
    order = BatchOrder(**{"batch_size": 4, "seed": 3, **fields})
    return list(itertools.islice(BucketRequests(MEMBERS, SIZES, order, start), number))


def test_the_nearest_ratio_counts_not_the_size():
    assert [nearest_bucket(size, SIZES) for size in ((600, 1000), (50, 49), (9, 5), (1, 100), (100, 1))] == [
        0,
        1,
        2,
        0,
        2,
    ]


@pytest.mark.parametrize("form", ["PNG", "JPEG", "WEBP"])
def test_sizes_are_read_from_headers_upright(form, tmp_path):
    content = encoded(Image.new("RGB", (10, 6)), form)
    assert stored_size(content) == (6, 10)
    (tmp_path / "a").write_bytes(content)
    assert stored_size(tmp_path / "a") == (6, 10)
    exif = Image.Exif()
    exif[0x0112] = 6  # turned by a quarter
    assert stored_size(encoded(Image.new("RGB", (10, 6)), form, exif=exif)) == (10, 6)
    with pytest.raises(UnusableSampleError):
        stored_size(content[:8])


def test_images_that_cannot_be_read_are_in_the_default_bucket():
    files = [png(size=(20, 12)), b"no image", png(size=(12, 20))]

    class Files(list):
        def read(self, number):
            return Sample(self[number], "")

    assert sort_into_buckets(Files(files), SIZES, (16, 16)) == [[0], [1], [2]]


@pytest.mark.parametrize("counts", [(1, 1), (5, 0, 10), (997, 2, 1), (3, 4, 5, 6)])
def test_buckets_are_used_in_proportion_at_any_time(counts):
    used = Counter()
    for step, (bucket, before) in enumerate(itertools.islice(bucket_of_steps(counts), 300), start=1):
        assert before == used[bucket]
        used[bucket] += 1
        for number, count in enumerate(counts):
            assert abs(used[number] - step * count / sum(counts)) < len(counts)


def test_a_batch_is_of_one_bucket_and_every_image_is_used_as_often():
    taken = Counter()
    for request in requests(number=30):
        members = MEMBERS[SIZES.index(request.size)]
        assert set(request.references) <= set(members)
        taken.update(request.references)
    assert set(taken.values()) == {8}  # 120 places for 15 images


def test_the_order_goes_on_from_any_step():
    assert requests(start=7, number=5) == requests(number=12)[7:]
    assert requests(start=7, number=6, accumulation=2) == requests(number=20, accumulation=2)[14:]
    assert requests(seed=4) != requests()


@pytest.mark.parametrize(("world", "accumulation", "batch_size"), [(2, 1, 2), (1, 4, 1), (2, 2, 1)])
def test_a_step_is_the_same_however_it_is_divided(world, accumulation, batch_size):
    whole = requests(number=6)
    parts = [
        requests(number=6 * accumulation, world=world, rank=rank, accumulation=accumulation, batch_size=batch_size)
        for rank in range(world)
    ]
    for step, request in enumerate(whole):
        shares = [share for part in parts for share in part[step * accumulation : (step + 1) * accumulation]]
        assert {share.size for share in shares} == {request.size}
        assert {len(share.references) for share in shares} == {batch_size}
        pairs = {pair for share in shares for pair in zip(share.positions, share.references, strict=True)}
        assert pairs == set(zip(request.positions, request.references, strict=True))
