# SPDX-License-Identifier: Apache-2.0
"""Each check lets pass what it should and names what it refuses."""

import math

import numpy as np
import pytest
import torch

from diffusers_mdm.checked_values import (
    check_flag,
    check_number,
    check_whole_number,
    describe,
    is_number,
    is_whole_number,
)

NO_NUMBERS = [None, "3", [3], {}, True, float("nan"), float("inf"), 3 + 0j, object()]


@pytest.mark.parametrize("value", [1, 5, np.int64(3)])
def test_whole_numbers_in_range_pass(value):
    check_whole_number(value, "`steps`", 1, 5)


@pytest.mark.parametrize("value", [*NO_NUMBERS, 0, 6, -1, 2.0, 10**100])
def test_other_values_are_no_whole_numbers(value):
    with pytest.raises(ValueError, match=r"`steps` is .*; expected a whole number from 1 to 5\. Use fewer\."):
        check_whole_number(value, "`steps`", 1, 5, "Use fewer.")


@pytest.mark.parametrize("value", [0.5, 1, np.float32(0.25)])
def test_numbers_in_range_pass(value):
    check_number(value, "`eta`", 0.0, 1.0, above=True)


@pytest.mark.parametrize("value", [*NO_NUMBERS, 0.0, -0.5, 1.5])
def test_other_values_are_no_numbers(value):
    with pytest.raises(ValueError, match=r"`eta` is .*; expected a finite number above 0 up to 1\."):
        check_number(value, "`eta`", 0.0, 1.0, above=True)


def test_numbers_without_a_range_only_need_to_be_finite():
    check_number(-1e300, "x")
    with pytest.raises(ValueError, match=r"expected a finite number\."):
        check_number(-math.inf, "x")


@pytest.mark.parametrize("value", [0, 1, None, "True", np.bool_(True)])
def test_flags_are_true_or_false(value):
    check_flag(False, "x")
    with pytest.raises(ValueError, match="expected True or False"):
        check_flag(value, "x")


@pytest.mark.parametrize("value", [True, "3", 3.5, None, 1 + 0j, 0])
def test_other_values_are_not_whole_numbers_of_at_least_1(value):
    assert not is_whole_number(value, 1)


@pytest.mark.parametrize("value", [True, "3", math.nan, math.inf, None, 1j, 10**400, -0.5, 1.5])
def test_other_values_are_not_numbers_from_0_to_1(value):
    assert not is_number(value, 0, 1)


def test_short_values_are_described_by_their_repr():
    for value in (1, 2.5, None, "text", [1, "a"], {"a": (1,)}, (), math.nan):
        assert describe(value) == repr(value)


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        ("a" * 200, f"'{'a' * 37}...{'a' * 38}'"),
        (np.zeros((2, 3)), "ndarray of shape (2, 3) and type float64"),
        (torch.zeros(2, device="meta"), "Tensor of shape (2,) and type torch.float32 on meta"),
        ([torch.zeros(1, 2)], "[Tensor of shape (1, 2) and type torch.float32]"),
        (torch.nn.Sequential(torch.nn.Linear(1, 1)), "an object of type Sequential"),
    ],
)
def test_long_values_are_described_shortly(value, shown):
    assert describe(value) == shown


def doubled(times: int) -> object:
    """A value of 2^times leaves in as many lists."""
    value: object = "leaf"
    for _ in range(times):
        value = [value, value]
    return value


def test_endless_values_are_described_in_a_line():
    itself: list[object] = []
    itself.append(itself)
    for value in (itself, doubled(60), "x" * 10**6, 10**10_000, list(range(10**6)), {"a": doubled(100)}):
        assert len(describe(value)) < 1000
