# SPDX-License-Identifier: Apache-2.0
"""Snapshots: which are kept, in which precision, and what becomes of them when a run resumes from before them."""

import itertools

import pytest
import torch

from diffusers_mdm.training.state.post_hoc.snapshots import (
    FOLDER,
    in_16_bits,
    read_snapshots,
    set_aside_newer_snapshots,
    snapshot_folders,
    steps_to_keep,
)


def test_all_are_kept_up_to_the_limit():
    assert steps_to_keep([100, 200, 250], every=100, limit=3) == [100, 200, 250]


@pytest.mark.parametrize("limit", [2, 5, 16])
def test_they_are_thinned_out_evenly_as_training_goes_on(limit):
    kept: list[int] = []
    for step in range(10, 5010, 10):
        kept = steps_to_keep([*kept, step], every=10, limit=limit)
        assert len(kept) <= limit
        assert kept[-1] == step
        gaps = [after - before for before, after in itertools.pairwise([0, *kept])]
        assert max(gaps) <= max(10, 4 * step / limit)
    assert len(kept) > limit / 2 - 1


def test_half_precision_is_exact_to_11_bits_and_never_overflows():
    torch.manual_seed(0)
    value = torch.randn(1000)
    assert in_16_bits(value).dtype == torch.float16
    torch.testing.assert_close(in_16_bits(value).float(), value, rtol=2**-11, atol=1e-7)
    large = torch.tensor([1e6, -1.0])
    assert in_16_bits(large).dtype == torch.bfloat16
    torch.testing.assert_close(in_16_bits(large).float(), large, rtol=2**-8, atol=0)


def test_newer_ones_are_set_aside_and_others_stay(tmp_path):
    for name in ("snapshot-2", "snapshot-4", "snapshot-6", "set-aside-snapshot-6", "notes"):
        (tmp_path / FOLDER / name).mkdir(parents=True)
    set_aside_newer_snapshots(tmp_path, 4)
    assert list(snapshot_folders(tmp_path / FOLDER)) == [2, 4]
    assert (tmp_path / FOLDER / "set-aside-snapshot-6-2").is_dir()
    set_aside_newer_snapshots(tmp_path / "nothing", 4)


def test_damaged_ones_are_skipped(tmp_path, caplog):
    (tmp_path / FOLDER / "snapshot-2").mkdir(parents=True)
    assert read_snapshots(tmp_path) == []
    assert "snapshot-2, which is damaged" in caplog.text
