# SPDX-License-Identifier: Apache-2.0
"""Recipes of the package are found by name, and a file always comes first."""

from pathlib import Path

import pytest

from diffusers_mdm.training.recipe import shipped
from diffusers_mdm.training.recipe.loading import load_recipe
from diffusers_mdm.training.recipe.shipped import find_recipe, shipped_recipes

ROOT = Path(__file__).parents[3]


@pytest.mark.parametrize("name", ["tiny", "tiny.yaml"])
def test_a_name_is_enough(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert find_recipe(name) == ROOT / "training" / "recipes" / "tiny.yaml"
    assert load_recipe(find_recipe(name)).name == "tiny"
    (tmp_path / name).write_text("mine", encoding="utf-8")
    assert find_recipe(name) == Path(name)


def test_all_recipes_have_names():
    files = sorted((ROOT / "training" / "recipes").glob("*.yaml"))
    assert list(shipped_recipes().values()) == files


@pytest.mark.parametrize("name", ["tine", "elsewhere/tiny.yaml", "tiny.json"])
def test_a_wrong_path_is_no_name(name):
    with pytest.raises(FileNotFoundError, match="one of the recipes of the package: cc12m_1024, "):
        find_recipe(name)


def test_a_package_without_recipes_says_what_is_missing(tmp_path, monkeypatch):
    monkeypatch.setattr(shipped, "PLACES", (tmp_path / "nowhere",))
    with pytest.raises(FileNotFoundError, match="expected a YAML file"):
        find_recipe("tiny")
