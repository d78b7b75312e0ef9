# SPDX-License-Identifier: Apache-2.0
import logging

import pytest

from diffusers_mdm.training.data.skip_budget import Skip, SkipBudget


def test_each_sample_is_counted_and_logged_once(caplog):
    budget = SkipBudget(limit=2)
    with caplog.at_level(logging.WARNING):
        budget.add([Skip("a", "it is broken"), Skip("a", "it is broken"), Skip("b", "it is small")])
        budget.add([Skip("a", "it is broken")])
    assert budget.reasons == {"a": "it is broken", "b": "it is small"}
    assert len(budget) == 2
    assert [record.getMessage() for record in caplog.records] == [
        "Skipped a: it is broken.",
        "Skipped b: it is small.",
    ]


def test_over_the_limit_ten_are_named():
    budget = SkipBudget(limit=12)
    skips = [Skip(f"row {number}", f"reason {number}") for number in range(20)]
    with pytest.raises(ValueError, match="13 pictures") as error:
        budget.add(skips)
    message = str(error.value)
    assert "`max_skipped_images` allows 12" in message
    assert "row 0: reason 0; row 1: reason 1" in message
    assert "row 9: reason 9; and 3 more" in message
    assert "row 10" not in message


def test_without_a_budget_the_first_one_stops():
    with pytest.raises(ValueError, match="They are: a: it is broken"):
        SkipBudget(limit=0).add([Skip("a", "it is broken")])
