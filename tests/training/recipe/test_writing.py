# SPDX-License-Identifier: Apache-2.0
import dataclasses
import json

import pytest

from diffusers_mdm.training.recipe.loading import load_recipe
from diffusers_mdm.training.recipe.recipe import PretrainedRecipe, PriorRecipe
from diffusers_mdm.training.recipe.writing import as_json, write_recipe
from tests.training.tiny_run import RECIPES, tiny_recipe


@pytest.mark.parametrize("path", sorted(RECIPES.glob("*.yaml")), ids=lambda path: path.stem)
def test_what_is_written_reads_back_as_the_same_recipe(path, tmp_path, monkeypatch):
    # A path that is not beside the recipe is one from the current folder, which must not happen to have such a file.
    monkeypatch.chdir(tmp_path)
    recipe = load_recipe(path)
    assert load_recipe(write_recipe(recipe, tmp_path / "new")) == recipe


def test_paths_of_this_machine_are_relative_to_the_recipe(images_dir, tmp_path):
    recipe = tiny_recipe(images_dir)
    (tmp_path / "base").mkdir()
    (tmp_path / "frogs").mkdir()
    recipe = dataclasses.replace(
        recipe,
        pretrained=PretrainedRecipe(str(tmp_path / "base")),
        prior_preservation=PriorRecipe(str(tmp_path / "frogs"), "a frog"),
    )
    written = json.loads(write_recipe(recipe, tmp_path / "run").read_text())
    assert written["pretrained"]["path"] == "../base"
    assert written["prior_preservation"]["class_data_dir"] == "../frogs"
    assert written["data"]["path"].startswith("../")
    assert load_recipe(tmp_path / "run" / "recipe.json") == recipe


def test_shards_and_names_of_the_hub_are_kept_apart(images_dir, tmp_path):
    recipe = tiny_recipe(images_dir)
    shards = (str(tmp_path / "{000..012}.tar"), "https://example.com/{000..012}.tar")
    data = recipe.data.with_fields(path=None, shards=shards)
    recipe = dataclasses.replace(recipe, data=data, pretrained=PretrainedRecipe("someone/model"))
    written = json.loads(write_recipe(recipe, tmp_path / "run").read_text())
    assert written["data"]["shards"] == ["../{000..012}.tar", shards[1]]
    assert written["pretrained"]["path"] == "someone/model"
    assert load_recipe(tmp_path / "run" / "recipe.json") == recipe


def test_numbers_are_numbers_for_yaml_and_texts_stay_as_they_are():
    text = as_json({"rate": 5e-05, "epsilon": 1.5e-08, "large": -1e16, "text": 'as "1e-05" says: 2e-05'})
    assert '"rate": 5.0e-05' in text
    assert '"large": -1.0e+16' in text
    values = json.loads(text)
    assert values == {"rate": 5e-05, "epsilon": 1.5e-08, "large": -1e16, "text": 'as "1e-05" says: 2e-05'}
