# SPDX-License-Identifier: Apache-2.0
import dataclasses
import json
import math
import random

import pytest

from diffusers_mdm.training.loop.plateau import Plateau, PlateauState, Verdict
from diffusers_mdm.training.recipe.stage import PlateauRecipe

RECIPE = PlateauRecipe(every_steps=10, patience=3, min_gain=0.01, smoothing=0.0)


def verdicts(losses: list[float], recipe: PlateauRecipe = RECIPE) -> list[Verdict]:
    plateau = Plateau(recipe, PlateauState())
    return [plateau.update(10 * position, loss) for position, loss in enumerate(losses, start=1)]


def ends(losses: list[float], recipe: PlateauRecipe = RECIPE) -> list[bool]:
    return [verdict.ended for verdict in verdicts(losses, recipe)]


def test_a_falling_loss_goes_on():
    assert not any(ends([0.97**measurement for measurement in range(40)]))


def test_a_level_loss_ends_after_patience():
    assert ends([1.0, 0.5, 0.5, 0.5, 0.5]) == [False, False, False, False, True]


def test_a_gain_starts_patience_again():
    assert ends([1.0, 1.0, 1.0, 0.9, 0.9, 0.9, 0.9]) == [False] * 6 + [True]


def test_slow_gains_count_once_they_add_up():
    assert ends([1.0, 0.996, 0.992, 0.988, 0.988, 0.988, 0.988])[-1]
    assert not any(ends([1.0, 0.996, 0.992, 0.988, 0.984, 0.980, 0.976]))
    assert ends([1.0, 0.998, 0.996, 0.994])[-1]


def test_without_min_gain_any_fall_is_a_gain():
    recipe = dataclasses.replace(RECIPE, min_gain=0.0)
    assert not any(ends([1.0 - 1e-6 * measurement for measurement in range(20)], recipe))
    assert ends([1.0] * 4, recipe)[-1]


def test_the_stage_lasts_min_steps():
    recipe = dataclasses.replace(RECIPE, min_steps=70)
    found = verdicts([1.0] * 7, recipe)
    assert [verdict.ended for verdict in found] == [False] * 6 + [True]
    assert "continues to step 70" in found[3].reason
    assert "continues" not in found[2].reason + found[6].reason


def test_smoothing_sees_a_trend_through_noise():
    draws = random.Random(0)
    losses = [1 + draws.uniform(-0.2, 0.2) for _ in range(100)]
    recipe = PlateauRecipe(every_steps=10, patience=8, min_gain=0.0, smoothing=0.0)
    smoothed = dataclasses.replace(recipe, smoothing=0.9)
    plateau = Plateau(smoothed, PlateauState())
    for position, loss in enumerate(losses, start=1):
        plateau.update(position * 10, loss)
    assert plateau.state.best > 0.9  # the lowest single loss is near 0.8
    falling = [loss * 0.98**position for position, loss in enumerate(losses)]
    assert any(ends(falling, recipe))
    assert not any(ends(falling, smoothed))


def test_the_first_smoothed_loss_is_the_loss_itself():
    plateau = Plateau(dataclasses.replace(RECIPE, smoothing=0.99), PlateauState())
    plateau.update(10, 0.7)
    assert plateau.state.best == pytest.approx(0.7)
    plateau.update(20, 0.5)
    assert plateau.state.best == pytest.approx((0.99 * 0.7 + 0.5) / 1.99)


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_a_loss_that_is_not_finite_is_no_gain_and_is_forgotten(bad):
    recipe = dataclasses.replace(RECIPE, smoothing=0.5)
    assert ends([1.0, bad, bad, bad], recipe) == [False, False, False, True]
    assert ends([bad, bad, bad], recipe) == [False, False, True]
    assert not any(ends([1.0, bad, bad, 0.5, bad, bad, 0.2], recipe))
    plateau = Plateau(recipe, PlateauState())
    plateau.update(10, 1.0)
    average = plateau.state.average
    plateau.update(20, bad)
    assert plateau.state.average == average


@pytest.mark.parametrize("stop_after", [1, 4, 9, 15])
def test_a_restart_continues_as_if_nothing_had_been(stop_after):
    draws = random.Random(1)
    losses = [draws.choice([1.0, 0.5 + draws.random(), math.nan]) * 0.97**position for position in range(25)]
    recipe = PlateauRecipe(every_steps=10, patience=4, min_gain=0.003, smoothing=0.7, min_steps=50)
    expected = verdicts(losses, recipe)

    plateau = Plateau(recipe, PlateauState())
    found = []
    for position, loss in enumerate(losses, start=1):
        found.append(plateau.update(10 * position, loss))
        if position == stop_after:
            saved = json.dumps(dataclasses.asdict(plateau.state), allow_nan=False)
            plateau = Plateau(recipe, PlateauState(**json.loads(saved)))
    assert found == expected


def test_the_reason_has_the_numbers():
    recipe = dataclasses.replace(RECIPE, patience=2)
    plateau = Plateau(recipe, PlateauState(), level=1)
    reasons = [
        plateau.update(step, loss).reason for step, loss in [(10, 0.1), (20, 0.0809), (30, 0.0812), (40, 0.081)]
    ]
    assert reasons == [
        "validation loss of level 1 began at 0.1",
        "validation loss of level 1 0.0809 fell by 19.1 % below its best 0.1 (step 10)",
        "validation loss of level 1 0.0812 did not fall by 1 % below its best 0.0809 (step 20) in 1 of 2 measurements",
        "validation loss of level 1 0.081 did not fall by 1 % below its best 0.0809 (step 20) in 2 measurements",
    ]


def test_the_reason_says_what_is_smoothed_or_not_a_number():
    smoothed = verdicts([1.0, math.nan], dataclasses.replace(RECIPE, smoothing=0.5))
    assert smoothed[0].reason == "smoothed validation loss of level 0 began at 1"
    assert "level 0 nan did not fall by 1 %" in smoothed[1].reason
    assert "nan was never a finite number in 3 measurements" in verdicts([math.nan] * 3)[-1].reason


def test_measurements_are_due_once_every_so_many_steps():
    plateau = Plateau(RECIPE, PlateauState())
    assert [step for step in range(31) if plateau.is_due(step)] == [10, 20, 30]
    plateau.update(20, 1.0)
    assert [step for step in range(31) if plateau.is_due(step)] == [30]


def test_a_measurement_does_not_count_twice():
    plateau = Plateau(RECIPE, PlateauState())
    plateau.update(10, 1.0)
    with pytest.raises(ValueError, match="Step 10 was measured already"):
        plateau.update(10, 1.0)


def test_more_may_be_better():
    recipe = dataclasses.replace(RECIPE, metric="retrieval")
    found = verdicts([0.5, 0.6, 0.603, 0.7, 0.7, 0.6, 0.5], recipe)
    assert [verdict.ended for verdict in found] == [False] * 6 + [True]
    assert "validation retrieval of level 0 0.7 rose by 16.7 % above its best 0.6" in found[3].reason
    assert "did not rise by 1 % above its best 0.6" in found[2].reason


def test_a_kernel_distance_may_fall_below_zero():
    recipe = dataclasses.replace(RECIPE, metric="kid")
    assert ends([0.1, -0.1, -0.2, -0.201, -0.2, -0.2], recipe) == [False] * 5 + [True]
    assert not any(ends([0.0, -0.1, -0.2, -0.3], recipe))
