# SPDX-License-Identifier: Apache-2.0
"""Every shipped recipe is trained by one command, and the others say by which."""

import re

import pytest

from diffusers_mdm.training.commands.flag_table import FLAGS
from diffusers_mdm.training.commands.kinds import CLASS_CONDITIONAL, TEXT_TO_IMAGE, TEXT_TO_VIDEO, UNCONDITIONAL
from diffusers_mdm.training.recipe.loading import load_recipe
from tests.training.tiny_run import RECIPES

KINDS = {
    "text_to_image": TEXT_TO_IMAGE,
    "class_conditional": CLASS_CONDITIONAL,
    "text_to_video": TEXT_TO_VIDEO,
    "unconditional": UNCONDITIONAL,
}


def refusal(kind, recipe) -> str | None:
    try:
        kind.check(recipe)
    except ValueError as error:
        return str(error)
    return None


@pytest.mark.parametrize(
    ("name", "trained_by"),
    [
        ("tiny", ["text_to_image"]),
        ("tiny_video", ["text_to_video"]),
        # A model of classes, or of nothing, is one of images, too.
        ("imagenet_64", ["class_conditional", "text_to_image"]),
        ("emoji_unconditional", ["text_to_image", "unconditional"]),
    ],
)
def test_a_recipe_is_trained_by_its_command(name, trained_by):
    recipe = load_recipe(RECIPES / f"{name}.yaml")
    refusals = {kind: refusal(command, recipe) for kind, command in KINDS.items()}
    assert sorted(kind for kind, message in refusals.items() if message is None) == trained_by
    for message in filter(None, refusals.values()):
        assert f"{recipe.name!r}" in message
        (command,) = re.findall(r"training/(train_\w+\.py)", message)
        assert (RECIPES.parent / command).is_file()


@pytest.mark.parametrize("kind", KINDS.values(), ids=KINDS)
def test_defaults_are_of_flags_that_there_are(kind):
    assert {*kind.defaults, *kind.fine_tuning_defaults} <= FLAGS.keys()
    assert kind.description.endswith(".\n")
