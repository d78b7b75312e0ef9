# SPDX-License-Identifier: Apache-2.0
import math

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from diffusers_mdm.training.loss.tables import level_means, loss_table, table_values


def test_rows_are_counted_in_the_quartile_of_their_t():
    timesteps = torch.tensor([0, 249, 250, 499, 500, 749, 750, 999])
    table = loss_table([torch.arange(8.0)], timesteps, 1000)
    assert table[0].tolist() == [[1.0, 5.0, 9.0, 13.0]]
    assert table[1].tolist() == [[2.0, 2.0, 2.0, 2.0]]


def test_outer_levels_count_their_first_rows():
    table = loss_table([torch.ones(4), torch.tensor([3.0, 5.0])], torch.tensor([0, 999, 999, 999]), 1000)
    assert table_values(table) == {
        "loss/level_0": 1.0,
        "loss/level_0/quartile_1": 1.0,
        "loss/level_0/quartile_4": 1.0,
        "loss/level_1": 4.0,
        "loss/level_1/quartile_1": 3.0,
        "loss/level_1/quartile_4": 5.0,
    }


def test_tables_of_parts_add_up_to_that_of_the_whole():
    timesteps = torch.randint(0, 1000, (64,))
    errors = [torch.rand(64), torch.rand(64)]
    whole = loss_table(errors, timesteps, 1000)
    parts = sum(loss_table([level[p::4] for level in errors], timesteps[p::4], 1000) for p in range(4))
    torch.testing.assert_close(parts, whole)
    for level, mean in enumerate(level_means(whole)):
        assert mean == pytest.approx(errors[level].mean().item(), rel=1e-6)


@pytest.mark.parametrize("num_train_timesteps", [4, 10, 999, 1000])
def test_quartiles_are_even(num_train_timesteps):
    everything = torch.arange(num_train_timesteps)
    counts = loss_table([torch.ones(num_train_timesteps)], everything, num_train_timesteps)[1, 0]
    assert counts.sum() == num_train_timesteps
    assert counts.max() - counts.min() <= 1


def test_errors_that_are_not_finite_are_left_out_on_request():
    errors, timesteps = torch.tensor([1.0, torch.nan, 2.0, torch.inf]), torch.tensor([0, 0, 600, 999])
    assert table_values(loss_table([errors], timesteps, 1000)) == {
        "loss/level_0": 1.5,
        "loss/level_0/quartile_1": 1.0,
        "loss/level_0/quartile_3": 2.0,
    }
    kept = table_values(loss_table([errors], timesteps, 1000, leave_out_non_finite=False))
    assert math.isnan(kept["loss/level_0/quartile_1"])
    assert kept["loss/level_0/quartile_3"] == 2.0  # the others do not spread
    assert kept["loss/level_0/quartile_4"] == math.inf


def test_a_table_without_rows_says_nothing():
    table = loss_table([torch.empty(0), torch.empty(0)], torch.empty(0, dtype=torch.int64), 1000)
    assert all(math.isnan(mean) for mean in level_means(table))
    assert table_values(table, "validation_loss") == {}


class NoFloat64(TorchDispatchMode):
    """Apple's GPUs have no float64: here the device "meta" stands for them."""

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        if isinstance(result, torch.Tensor) and result.device.type == "meta" and result.dtype == torch.float64:
            raise TypeError("This device has no float64.")
        return result


def test_means_make_no_float64_on_the_device():
    # A meta tensor holds no numbers, so it can only get as far as the copy to the CPU.
    with NoFloat64(), pytest.raises(NotImplementedError, match="meta"):
        level_means(torch.zeros(2, 2, 4, device="meta"))
