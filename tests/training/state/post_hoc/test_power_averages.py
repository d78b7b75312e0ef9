# SPDX-License-Identifier: Apache-2.0
"""Averages of weights: against their definition, with weights that join later or are frozen for a while."""

import pytest
import torch

from diffusers_mdm.training.state.post_hoc.power_averages import PowerAverages
from diffusers_mdm.training.state.post_hoc.profiles import exponent_of

WIDTHS = (0.05, 0.1)


def parameter(value: float, trained: bool = True) -> torch.nn.Parameter:
    return torch.nn.Parameter(torch.full((3,), value), requires_grad=trained)


def expected(values: list[float], width: float) -> torch.Tensor:
    """The average of the values of weights after each update, by the definition."""
    times = torch.arange(len(values) + 1, dtype=torch.float64) / len(values)
    shares = (times ** (exponent_of(width) + 1)).diff()
    return torch.full((3,), float((shares * torch.tensor(values, dtype=torch.float64)).sum()))


@pytest.mark.parametrize("foreach", [True, False])
def test_they_are_weighted_means_of_all_values(foreach):
    values = [3.0, -1.0, 2.5, 0.5, 4.0, 1.0]
    average = PowerAverages.beginning_with({"w": torch.zeros(3)}, WIDTHS)
    average.foreach = foreach
    for value in values:
        average.update({"w": parameter(value)})
    for width in WIDTHS:
        torch.testing.assert_close(average.shadows[width]["w"], expected(values, width))


def test_they_do_not_share_memory_with_the_weights():
    weight = torch.zeros(3)
    average = PowerAverages.beginning_with({"w": weight}, WIDTHS)
    weight.fill_(1)
    assert all(not shadows["w"].any() for shadows in average.shadows.values())


def test_weights_that_join_later_have_a_beginning_of_their_own():
    average = PowerAverages.beginning_with({"old": torch.zeros(3)}, WIDTHS)
    old, new = [1.0, 2.0, 3.0, 4.0], [7.0, 5.0]
    for value in old[:2]:
        average.update({"old": parameter(value)})
    average.grow({"old": parameter(2.0), "new": parameter(9.0)})
    assert torch.equal(average.shadows[0.1]["new"], torch.full((3,), 9.0))
    for first, second in zip(old[2:], new, strict=True):
        average.update({"old": parameter(first), "new": parameter(second)})
    for width in WIDTHS:
        torch.testing.assert_close(average.shadows[width]["old"], expected(old, width))
        torch.testing.assert_close(average.shadows[width]["new"], expected(new, width))
    assert average.since == {"old": 0, "new": 2}


def test_frozen_weights_are_copied_and_begin_anew_when_they_are_trained_again():
    average = PowerAverages.beginning_with({"w": torch.zeros(3)}, WIDTHS)
    average.update({"w": parameter(1.0)})
    average.update({"w": parameter(5.0, trained=False)})
    assert torch.equal(average.shadows[0.05]["w"], torch.full((3,), 5.0))
    assert average.since == {"w": average.updates}
    values = [2.0, 3.0, 1.0]
    for value in values:
        average.update({"w": parameter(value)})
    for width in WIDTHS:
        torch.testing.assert_close(average.shadows[width]["w"], expected(values, width))
