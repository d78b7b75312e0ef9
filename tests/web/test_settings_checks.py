# SPDX-License-Identifier: Apache-2.0
"""What visitors and links give is checked, whatever the fields of the page would have allowed."""

import dataclasses
import math

import pytest

from diffusers_mdm.web.limits import Limits
from diffusers_mdm.web.settings import Settings
from diffusers_mdm.web.settings_checks import checked

LIMITS = Limits(steps=20, images=2, prompt_length=30)
GOOD = Settings(
    task="text",
    model="tiny",
    prompt=" a red apple ",
    level=1,
    steps=20.0,
    guidance=(2, 3.0, 9.0),
    images=2.0,
    seed=7.0,
)


def test_numbers_of_a_form_become_whole(tiny):
    result = checked(GOOD, tiny, LIMITS)
    assert (result.prompt, result.steps, result.images, result.seed) == ("a red apple", 20, 2, 7)
    assert all(isinstance(value, int) for value in (result.steps, result.images, result.seed))
    assert result.guidance == (2.0, 3.0)


def test_one_scale_serves_all_levels(tiny):
    assert checked(dataclasses.replace(GOOD, guidance=(2.0,)), tiny, LIMITS).guidance == (2.0, 2.0)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"task": "dance"}, "no task"),
        ({"task": "clips"}, "tiny cannot do this; it can do: Text to image, Upscale, Edit"),
        ({"prompt": "a" * 31}, "31 characters; this page takes 30"),
        ({"negative_prompt": "a" * 31}, "negative prompt has 31"),
        ({"prompt": None}, "write a text"),
        ({"level": 2}, "choose one of 8 px, 16 px"),
        ({"level": None}, "no level None"),
        ({"level": -1}, "no level"),
        ({"task": "upscale", "level": 0}, "16 px .the level inside it is your image"),
        ({"steps": 21}, "1 to 20"),
        ({"steps": 0}, "number of steps is 0"),
        ({"steps": None}, "missing"),
        ({"steps": 2.5}, "whole number"),
        ({"steps": math.inf}, "whole number"),
        ({"steps": "many"}, "whole number"),
        ({"images": 3}, "images is 3; .* 1 to 2"),
        ({"seed": -1}, "seed is -1"),
        ({"seed": 2**32}, "seed is 4294967296"),
        ({"solver": "magic"}, "choose one of as saved"),
        ({"guidance": ()}, "no guidance"),
        ({"guidance": (1.0, math.nan)}, "guidance is nan"),
        ({"guidance": (1.0, None)}, "guidance is missing"),
        ({"guidance": (51.0,)}, "0 to 50"),
        ({"strength": 1.1}, "strength is 1.1"),
    ],
)
def test_bad_input_is_a_sentence(tiny, change, message):
    with pytest.raises(ValueError, match=message) as error:
        checked(dataclasses.replace(GOOD, **change), tiny, LIMITS)
    assert str(error.value)[0].isupper() or str(error.value).startswith("tiny")
    assert str(error.value)[-1] in ".:)"


def test_classes_are_checked_by_name_and_number(models):
    settings = Settings(task="classes", model="kinds", label="dog", level=1)
    assert checked(settings, models["kinds"], Limits()).label == "dog"
    assert checked(dataclasses.replace(settings, label="2"), models["kinds"], Limits()).label == "2"
    for label, message in (("", "Choose a class"), ("dgo", "dog"), ("77", "77")):
        with pytest.raises(ValueError, match=message):
            checked(dataclasses.replace(settings, label=label), models["kinds"], Limits())


def test_texts_for_models_without_text_are_dropped(models):
    settings = Settings(task="classes", model="kinds", label="dog", prompt="never read", level=0)
    assert checked(settings, models["kinds"], Limits()).prompt == ""
