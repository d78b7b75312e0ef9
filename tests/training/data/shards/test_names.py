# SPDX-License-Identifier: Apache-2.0
"""Brace patterns in the names of shards."""

import pytest

from diffusers_mdm.training.data.shards.names import expand_patterns


def test_braces_count_and_list():
    assert expand_patterns(["{00..02}.tar", "x"]) == ["00.tar", "01.tar", "02.tar", "x"]
    assert expand_patterns(["{a,b}/{9..10}"]) == ["a/9", "a/10", "b/9", "b/10"]


@pytest.mark.parametrize(
    ("pattern", "message"),
    [
        ("{0..999999999}.tar", "'{0..999999999}.tar' stands for too many files: 1,000,000,000"),
        ("{0..9999}{0..9999}{0..9999}{0..9999}", "too many files"),
        ("{0..%s}" % ("9" * 5000), "more than 18 digits"),
        ("{3..1}", "counts down; write {1..3}"),
        ("{a}", "needs {first..last}"),
        ("{0..1", "an unmatched brace"),
        ("a}", "an unmatched brace"),
    ],
)
def test_patterns_that_make_no_sense_are_refused_before_any_work(pattern, message):
    with pytest.raises(ValueError, match=message):
        expand_patterns([pattern])
