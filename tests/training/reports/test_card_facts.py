# SPDX-License-Identifier: Apache-2.0
"""Facts that a model card says in several places."""

import dataclasses

import pytest

from diffusers_mdm.training.recipe.loading import load_recipe
from diffusers_mdm.training.reports.card_facts import is_hub_id, public_name, sides_of, subject_prompt
from tests.training.tiny_run import RECIPES


@pytest.mark.parametrize(
    ("name", "is_id", "shown"),
    [
        ("somebody/pictures", True, "somebody/pictures"),
        ("pictures", True, "pictures"),
        ("./pictures", False, "pictures"),
        ("../data/pictures", False, "pictures"),
        ("a/b/c", False, "c"),
    ],
)
def test_folders_are_shown_by_their_name_alone(name, is_id, shown):
    assert (is_hub_id(name), public_name(name)) == (is_id, shown)


def test_a_folder_that_is_there_is_none_of_the_hub(tmp_path, monkeypatch):
    (tmp_path / "somebody" / "pictures").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    assert public_name("somebody/pictures") == "pictures"
    assert public_name(str(tmp_path / "somebody")) == "somebody"


def test_only_levels_that_stages_reach_have_been_learnt():
    recipe = load_recipe(RECIPES / "tiny.yaml")
    assert sides_of(recipe) == (8, 16)
    assert sides_of(dataclasses.replace(recipe, stages=recipe.stages[:1]), factor=8) == (64,)


def test_a_subject_is_the_one_caption_of_all_images():
    recipe = load_recipe(RECIPES / "tiny.yaml")
    assert subject_prompt(recipe) is None
    subject = dataclasses.replace(recipe, data=dataclasses.replace(recipe.data, caption="a sks dog"))
    assert subject_prompt(subject) == "a sks dog"
    assert subject_prompt(load_recipe(RECIPES / "imagenet_64.yaml")) is None  # it sees no text
