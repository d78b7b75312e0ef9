# SPDX-License-Identifier: Apache-2.0
"""Each check lets pass what it should and names what it refuses."""

import math

import numpy as np
import pytest

from diffusers_mdm.checked_values import (
    check_flag,
    check_number,
    check_whole_number,
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
