# SPDX-License-Identifier: Apache-2.0
"""A link gives back the settings that it was made of, and a damaged one is explained."""

import dataclasses

import pytest

from diffusers_mdm.web.permalinks import MAX_QUERY, from_query, to_query
from diffusers_mdm.web.settings import Settings

SETTINGS = Settings(
    task="text",
    model="mdm & co",
    prompt='déjà vu? "100%" #1 + 2',
    negative_prompt="a=b;c",
    label="",
    level=2,
    steps=12,
    solver="dpmsolver++",
    guidance=(1.5, 3.0, 0.1),
    images=3,
    seed=2**32 - 1,
    strength=0.35,
)


@pytest.mark.parametrize("settings", [SETTINGS, dataclasses.replace(SETTINGS, label="cooked / prepared", prompt="")])
def test_settings_come_back(settings):
    assert Settings(**from_query(to_query(settings))) == settings
    assert from_query(to_query(settings)) == {
        name: value for name, value in dataclasses.asdict(settings).items() if value != ""
    }


def test_a_link_has_no_line_breaks_or_spaces():
    assert not set(" \n\"<>'") & set(to_query(dataclasses.replace(SETTINGS, prompt="<b>two\nlines</b> '")))


def test_other_parameters_are_ignored():
    assert from_query("__theme=dark&seed=7&utm=x") == {"seed": 7}
    assert from_query("") == {}


@pytest.mark.parametrize("query", ["seed=x", "steps=1.5", "guidance=1,,2", "guidance=", "level=", "strength=a"])
def test_numbers_that_cannot_be_read_are_named(query):
    with pytest.raises(ValueError, match=query.split("=")[0] + "=.*not a number"):
        from_query(query)


def test_endless_links_are_refused():
    with pytest.raises(ValueError, match="longer than"):
        from_query("prompt=" + "a" * (MAX_QUERY + 1))
