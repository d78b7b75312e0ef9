# SPDX-License-Identifier: Apache-2.0
"""Single facts of foreign configs: parsed strictly, whatever a file says instead of them."""

import math

import pytest

from diffusers_mdm.conversion import config_facts
from diffusers_mdm.conversion.config_facts import Facts
from diffusers_mdm.conversion.inert_objects import PickledObject


def record(**state: object) -> PickledObject:
    found = PickledObject("argparse", "Namespace", ())
    found.state = state
    return found


@pytest.mark.parametrize(
    ("parser", "value", "expected"),
    [
        ("integer", "12", 12),
        ("integer", 3.0, 3),
        ("integer", -2, -2),
        ("count", 0, 0),
        ("positive", True, 1),
        ("number", "1e-4", 1e-4),
        ("optional_number", None, 0.0),
        ("optional_number", "", 0.0),
        ("flag", None, False),
        ("flag", 1, True),
        ("counts", "256, 512,", (256, 512)),
        ("counts", 2, (2,)),
        ("counts", [1, "2"], (1, 2)),
        ("counts", "", ()),
        ("optional_counts", None, None),
        ("optional_positive", -1, None),
        ("optional_positive", None, None),
        ("optional_positive", 7, 7),
        ("member", "ddpm", "DDPM"),
        ("member", PickledObject("samplers", "ScheduleType", (3,)), "DEEPFLOYD"),
        ("micro_conditions", "scale:64, other:0", (("scale", 64.0), ("other", 0.0))),
        ("micro_conditions", None, ()),
    ],
)
def test_what_is_understood(parser, value, expected):
    assert getattr(config_facts, parser)(value) == expected


@pytest.mark.parametrize(
    ("parser", "value"),
    [
        ("integer", 1.5),
        ("integer", 2**31 + 1),
        ("integer", None),
        ("count", -1),
        ("positive", 0),
        ("number", math.inf),
        ("number", 10**400),
        ("number", [1.0]),
        ("number", "many"),
        ("flag", 2),
        ("flag", "true"),
        ("flag", []),
        ("counts", {1: 2}),
        ("counts", range(3)),
        ("counts", [1] * 1001),
        ("optional_positive", math.nan),
        ("member", 3),
        ("member", PickledObject("samplers", "ScheduleType", (99,))),
        ("member", PickledObject("samplers", "ScheduleType")),
        ("micro_conditions", "scale"),
        ("micro_conditions", 64),
    ],
)
def test_what_is_refused(parser, value):
    with pytest.raises(ValueError, match=r"expected|entries|member"):
        getattr(config_facts, parser)(value)


def test_yaml_comes_first_and_arguments_fill_gaps():
    facts = Facts("", {"a": 1, "both": 2}, record(b=3, both=2.0))
    assert [facts.get(key, config_facts.integer) for key in ("a", "b", "both")] == [1, 3, 2]
    assert facts.get("none", config_facts.integer, default=None) is None
    with pytest.raises(ValueError, match=r"Neither .* contain `none`"):
        facts.get("none", config_facts.integer)


def test_contradictions_are_errors_where_they_matter():
    facts = Facts("top", {"a": 1}, record(a=2))
    with pytest.raises(ValueError, match=r"`top\.a` is 1 in the config file but 2 in the arguments"):
        facts.get("a", config_facts.integer)
    assert facts.get("a", config_facts.integer, compare=False) == 1


def test_children_are_mappings_or_empty():
    facts = Facts("", {"inner": {"a": 1}, "text": "x"}, record(inner=record(b=2)))
    inner = facts.child("inner")
    assert (inner.get("a", config_facts.integer), inner.get("b", config_facts.integer)) == (1, 2)
    assert not facts.child("text")
    with pytest.raises(ValueError, match=r"`inner\.a` cannot be used: expected true or false"):
        Facts("", {"inner": {"a": 7}}, None).child("inner").get("a", config_facts.flag)
