# SPDX-License-Identifier: Apache-2.0
"""Shards as files: counted before work, fetched within bounds."""

import pytest

from diffusers_mdm.training.data.shards import files
from diffusers_mdm.training.data.shards.files import describe_shards, fetch, list_shards


def test_shards_are_counted_whether_they_are_there_or_not(tmp_path):
    (tmp_path / "0.tar").write_bytes(b"")
    lines = describe_shards([str(tmp_path / "{0..2}.tar")], ["https://example.org/{0..4}.tar"])
    assert lines == [
        "3 shards for training, of which 2 are not on this machine; samples are counted as they are read",
        "5 shards held out; samples are counted as they are read",
    ]


def test_folders_are_no_shards(tmp_path):
    (tmp_path / "0.tar").mkdir()
    with pytest.raises(ValueError, match="1 of 1 shards do not exist or are not regular files"):
        list_shards([str(tmp_path / "0.tar")])


def test_a_source_that_never_ends_is_given_up(tmp_path, monkeypatch):
    (tmp_path / "far.tar").write_bytes(b"x" * 3 * 2**20)
    url = (tmp_path / "far.tar").as_uri()
    fetch(url, str(tmp_path / "near.tar"))
    assert (tmp_path / "near.tar").read_bytes() == (tmp_path / "far.tar").read_bytes()
    monkeypatch.setattr(files, "MAX_SHARD_BYTES", 2**20)
    with pytest.raises(ValueError, match=r"far\.tar has more than 0 GiB; split it into smaller shards"):
        fetch(url, str(tmp_path / "again.tar"))
