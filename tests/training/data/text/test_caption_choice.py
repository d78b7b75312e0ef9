# SPDX-License-Identifier: Apache-2.0
"""Which caption of a sample is used, where there are several."""

import collections

import pytest

from diffusers_mdm.training.data.text.caption_choice import CaptionChoice, Captions

POSITIONS = range(2000)


def chosen(choice: CaptionChoice, captions: Captions, seed: int = 0) -> list[str]:
    return [choice.choose(captions, seed, position) for position in POSITIONS]


def test_one_of_several_captions_is_chosen_by_position():
    captions = Captions(["a", "b", "c"])
    found = chosen(CaptionChoice(), captions)
    assert found == chosen(CaptionChoice(), captions)
    assert found != chosen(CaptionChoice(), captions, seed=1)
    assert all(600 < count < 730 for count in collections.Counter(found).values())


@pytest.mark.parametrize("captions", ["only", ["only"], [], ""])
def test_a_single_caption_or_none_leaves_no_choice(captions):
    assert set(chosen(CaptionChoice(), Captions(captions))) == {"only" if captions else ""}


def test_fractions_of_the_samples_take_other_columns():
    captions = Captions("main", {"label": "short", "words": ["one", "two"]})
    found = chosen(CaptionChoice({"label": 0.15, "words": 0.5}), captions)
    assert found == chosen(CaptionChoice({"words": 0.5, "label": 0.15}), captions)  # the order has no effect
    counts = collections.Counter(found)
    expected = {"main": 0.35, "short": 0.15, "one": 0.25, "two": 0.25}
    assert counts.keys() == expected.keys()
    assert all(abs(counts[text] / len(found) - share) < 0.04 for text, share in expected.items())
    assert "main" not in chosen(CaptionChoice({"label": 0.25, "words": 0.75}), captions)


def test_which_samples_these_are_is_independent_of_the_captions_inside_a_column():
    """Otherwise the first of two captions would be chosen more often for samples with a small random number."""
    captions = Captions(["m1", "m2"], {"label": ["l1", "l2"]})
    counts = collections.Counter(chosen(CaptionChoice({"label": 0.5}), captions))
    assert all(abs(counts[text] / len(POSITIONS) - 0.25) < 0.04 for text in ("m1", "m2", "l1", "l2"))


@pytest.mark.parametrize("missing", [{}, {"label": ""}, {"label": []}])
def test_samples_without_another_caption_have_the_main_one(missing):
    assert set(chosen(CaptionChoice({"label": 0.9}), Captions("main", missing))) == {"main"}


def test_without_randomness_it_is_the_first_main_caption():
    choice = CaptionChoice({"label": 0.9}, random=False)
    assert set(chosen(choice, Captions(["first", "second"], {"label": "other"}))) == {"first"}
    assert choice.choose(Captions([]), 0, 0) == ""
