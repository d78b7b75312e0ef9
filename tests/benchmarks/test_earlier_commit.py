# SPDX-License-Identifier: Apache-2.0
"""Drawing by two versions of the package in turns."""

import pytest
from earlier_commit import ROOT, measure, summary

from tests.pipelines.tiny_pipeline import make_pipeline


def test_ratios_are_those_of_each_round():
    found = summary([2.0, 9.0, 4.0], [1.0, 3.0, 4.0])
    assert (found["earlier, s"], found["ours, s"]) == (4.0, 3.0)
    assert (found["smallest"], found["earlier / ours"], found["largest"]) == (1.0, 2.0, 3.0)
    assert found["of the fastest"] == 2.0


@pytest.mark.slow
def test_the_same_version_twice_draws_the_same(tmp_path):
    make_pipeline().save_pretrained(tmp_path)
    settings = {"model": str(tmp_path), "num_images": 2, "steps": 2, "guidance_scale": 2.0}
    found = measure({"earlier": ROOT, "ours": ROOT}, settings, rounds=1)
    assert found["largest difference of a pixel"] == 0.0
    assert found["ours, s"] > 0
