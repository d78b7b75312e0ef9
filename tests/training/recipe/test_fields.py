# SPDX-License-Identifier: Apache-2.0
"""Reading plain values into dataclasses: what is taken, and what is refused with the field's name."""

import dataclasses
from typing import ClassVar, Literal

import numpy as np
import pytest

from diffusers_mdm.training.recipe.fields import FieldError, Range, check_ranges, read_arguments, read_fields


@dataclasses.dataclass(frozen=True)
class Inner:
    rate: float = 0.5


@dataclasses.dataclass(frozen=True)
class Outer:
    count: int
    kind: Literal["a", "b"] = "a"
    inner: Inner | None = None
    sides: tuple[int, ...] = ()
    names: tuple[str, ...] = ()
    offsets: dict[str, float] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True)
class Renamed:
    RENAMED: ClassVar[dict[str, str]] = {"number": "count"}

    count: int


def test_older_names_of_fields_are_read():
    assert read_fields(Renamed, {"number": 2}) == read_fields(Renamed, {"count": 2})
    with pytest.raises(FieldError, match=r"`part\.number` is the older name of `count`"):
        read_fields(Renamed, {"number": 2, "count": 2}, "part")
    with pytest.raises(FieldError, match=r"`part\.number` must be an integer|`part\.count` must be an integer"):
        read_fields(Renamed, {"number": "2"}, "part")


def test_plain_values_become_what_the_fields_say():
    values = {"count": 2, "inner": {"rate": 1}, "sides": [1, 2], "offsets": {"x": 3}}
    assert read_fields(Outer, values) == Outer(2, "a", Inner(1.0), (1, 2), offsets={"x": 3.0})


WRONG = {
    "count": ({}, r"`part\.count` is missing"),
    "lone surrogate": ({"count": 1, "names": ["a", "\ud800"]}, r"`part\.names\[1\]` is .*a lone surrogate"),
    "true is no number": ({"count": True}, r"`part\.count` must be an integer, got True"),
    "fraction": ({"count": 1.5}, r"`part\.count` must be an integer"),
    "too large": ({"count": 10**30}, r"`part\.count` must be a finite number"),
    "choice": ({"count": 1, "kind": []}, r"`part\.kind` must be one of 'a', 'b'"),
    "not finite": ({"count": 1, "inner": {"rate": float("inf")}}, r"`part\.inner\.rate` must be a finite number"),
    "text": ({"count": 1, "inner": {"rate": "1e-3"}}, r"`part\.inner\.rate` must be a number .*1\.0e-3"),
    "entry": ({"count": 1, "sides": [1, "2"]}, r"`part\.sides\[1\]` must be an integer"),
    "mapping": ({"count": 1, "offsets": {"x": None}}, r"`part\.offsets\.x` must be a number"),
    "names": ({"count": 1, "offsets": {1: 1}}, r"`part\.offsets` must have names"),
    "unknown": ({"count": 1, "sizes": []}, r"`part\.sizes` is not a known field; did you mean `sides`\?"),
    "empty name": ({"count": 1, "": 1}, r"`part\.''` is not a known field"),
}


@pytest.mark.parametrize("case", WRONG)
def test_mistakes_name_the_field(case):
    values, message = WRONG[case]
    with pytest.raises(FieldError, match=message):
        read_fields(Outer, values, "part")


class Made:
    def __init__(
        self,
        size: int = 3,
        name: str | None = None,
        scales: np.ndarray | list[float] | None = None,
        kinds: str | list[str] = "a",
    ) -> None: ...


def test_arguments_are_checked_by_their_annotations():
    assert read_arguments(Made, {"size": 2, "scales": [1]}, "made") == {"size": 2, "scales": [1.0]}
    with pytest.raises(FieldError, match=r"`made\.size` must be an integer"):
        read_arguments(Made, {"size": "2"}, "made")
    with pytest.raises(FieldError, match=r"`made\.name` is not a known field"):
        read_arguments(Made, {"name": "x"}, "made", leave_out=("name",))


@pytest.mark.parametrize(
    ("field", "value"), [("kinds", "a"), ("kinds", ["a", "b"]), ("scales", [0.5]), ("scales", None)]
)
def test_a_value_is_read_as_the_kind_that_it_is(field, value):
    assert read_arguments(Made, {field: value}, "made") == {field: value}


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("kinds", 3, r"`made\.kinds` must be text"),
        ("kinds", ["a", 3], r"`made\.kinds\[1\]` must be text"),
        ("scales", 0.5, r"`made\.scales` must be a list"),
        ("scales", ["a"], r"`made\.scales\[0\]` must be a number"),
    ],
)
def test_a_value_that_is_of_no_kind_is_refused(field, value, message):
    with pytest.raises(FieldError, match=message):
        read_arguments(Made, {field: value}, "made")


def test_ranges_say_what_they_allow():
    assert str(Range(1)) == "at least 1"
    assert str(Range(0, 1, open_low=True, open_high=True)) == "above 0 and below 1"
    check_ranges({"x": (0.5, None), "y": None}, {"x": Range(0, 1), "y": Range(1)})
    for wrong in (2, float("nan"), (0, -1)):
        with pytest.raises(ValueError, match="`x` must be at least 0 and at most 1, got"):
            check_ranges({"x": wrong}, {"x": Range(0, 1)})
