# SPDX-License-Identifier: Apache-2.0
import mixed_batch_cost
import pytest


def test_half_a_batch_costs_less_and_says_so(tiny_model):
    cost = mixed_batch_cost.measure_cost(tiny_model, 8, [1.0, 0.5], rounds=1)
    assert cost.samples_per_level == [8, 4]
    assert 0.5 < cost.counted < 1
    assert cost.measured > 0
    same = mixed_batch_cost.measure_cost(tiny_model, 2, [1.0, 1.0], rounds=1)
    assert same.counted == 1


@pytest.mark.parametrize("fractions", [[1.0], [0.5, 0.5], [1.0, 0.1]])
def test_fractions_that_make_no_batch_are_refused(tiny_model, fractions):
    with pytest.raises(ValueError, match="that leave each level at least one sample"):
        mixed_batch_cost.measure_cost(tiny_model, 2, fractions, rounds=1)


def test_command(tiny_model, monkeypatch, capsys):
    monkeypatch.setattr(mixed_batch_cost, "build_model", lambda name: tiny_model)
    mixed_batch_cost.main(["--models", "middle", "--batch_size", "2", "--rounds", "1"])
    assert "middle, (8, 16) pixels, 2 rows: rows per level [2, 1] take" in capsys.readouterr().out
