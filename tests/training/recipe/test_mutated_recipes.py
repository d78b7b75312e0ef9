# SPDX-License-Identifier: Apache-2.0
"""Recipes with one thing changed at random: each can be described as a run, or is refused with a field's name."""

import copy
import random
import re
from collections.abc import Iterator
from typing import Any

import pytest
import yaml

from diffusers_mdm.training.commands.dry_run import describe_run
from diffusers_mdm.training.recipe.loading import load_recipe
from tests.training.tiny_run import RECIPES

NAMES = ("tiny", "tiny_video", "emoji_styles_class")
VALUES = [
    *(None, True, False, 0, 1, -1, 2, 3, 7, 64, 10**9, -(10**9), 10**30, 0.5, -0.5, 1e300, float("nan"), float("inf")),
    *("", "none", "1e-3", "\ud83d", "x" * 5000, [], [1], [0], [-1], [10**9], [None], ["a"], [1.5], [[1]], [[[]]], {}),
    *({"a": 1}, {1: 2}, {None: None}, [{}], [1, 2], [1, 2, 3], [1.0, 0.5], [float("nan")], [4] * 50),
]


def places(value: Any, path: tuple = ()) -> Iterator[tuple]:
    """Paths of everything inside a recipe."""
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, entry in items:
        yield (*path, key)
        yield from places(entry, (*path, key))


def mutate(values: dict, chance: random.Random) -> None:
    """Replace, remove, repeat, rename or add one thing, somewhere."""
    *parents, last = chance.choice(list(places(values)))
    place: Any = values
    for key in parents:
        place = place[key]
    kind = chance.choice(["replace"] * 5 + ["remove", "repeat", "rename", "move"])
    if kind == "replace":
        place[last] = copy.deepcopy(chance.choice(VALUES))
    elif kind == "remove":
        del place[last]
    elif kind == "repeat":
        place[last] = [copy.deepcopy(place[last])] * chance.choice([1, 2, 40])
    elif kind == "rename" and isinstance(place, dict):
        place[chance.choice([f"{last}s", 5, "", "name", "levels"])] = place.pop(last)
    else:
        other = chance.choice(list(places(values)))
        for key in other:
            values = values[key]
        place[last] = copy.deepcopy(values)


@pytest.mark.slow
def test_two_thousand_mutations_run_or_name_a_field(tmp_path):
    chance, outcomes = random.Random(0), {True: 0, False: 0}
    originals = {name: yaml.safe_load((RECIPES / f"{name}.yaml").read_text(encoding="utf-8")) for name in NAMES}
    for number in range(2000):
        values = copy.deepcopy(originals[NAMES[number % len(NAMES)]])
        for _ in range(chance.choice([1, 1, 1, 2, 3])):
            mutate(values, chance)
        file = tmp_path / "recipe.yaml"
        file.write_text(yaml.safe_dump(values), encoding="utf-8")
        try:
            recipe = load_recipe(file)
        except ValueError as error:
            message = str(error)
            assert message.startswith(str(file)), message
            assert re.search(r"`[^`]+`", message), (message, values)
            assert len(message) < 3000
            outcomes[False] += 1
        else:
            assert describe_run(recipe)
            outcomes[True] += 1
    assert min(outcomes.values()) > 100, outcomes
