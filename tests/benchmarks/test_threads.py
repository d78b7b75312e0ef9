# SPDX-License-Identifier: Apache-2.0
"""Drawing by several threads and several processes."""

import pytest
from threads import measure, table

from tests.pipelines.tiny_pipeline import make_pipeline


def test_rates_are_related_to_one_thread_round_by_round():
    lines = table({4: {"1 thread": [1.0, 2.0], "2 threads": [1.5, 4.0]}}).splitlines()
    assert lines[2:] == ["| 4 | 1 thread | 1.5 | 1.00 |", "| 4 | 2 threads | 2.75 | 1.75 |"]


@pytest.mark.slow
def test_every_way_draws(tmp_path):
    make_pipeline().save_pretrained(tmp_path)
    settings = {"model": str(tmp_path), "num_images": 1, "steps": 1, "guidance_scale": 1.0}
    rates = measure(settings, num_threads=2, rounds=1)
    assert list(rates) == ["1 thread", "2 threads", "2 processes"]
    assert all(rate > 0 for (rate,) in rates.values())
