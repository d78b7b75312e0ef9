# SPDX-License-Identifier: Apache-2.0
import dataclasses
import json

import progressive_vs_scratch
import pytest

from diffusers_mdm.training.recipe.loading import load_recipe
from diffusers_mdm.training.recipe.stage import PlateauRecipe


def row(step: int, stage: str, *losses: float) -> dict:
    return {"step": step, "stage": stage, **{f"validation_loss/level_{i}": loss for i, loss in enumerate(losses)}}


def test_operations_add_up_over_stages():
    rows = [
        row(10, "inner", 0.5),
        {**row(15, "inner"), "loss/level_0": 0.4},
        row(20, "inner", 0.3),
        {**row(24, "outer", 0.2, 0.6), "validation_loss/level_0/quartile_0": 0.1},
    ]
    points = progressive_vs_scratch.curve(rows, {"inner": 2.0, "outer": 5.0})
    assert [(point.stage, point.step, point.flops) for point in points] == [
        ("inner", 10, 20.0),
        ("inner", 20, 40.0),
        ("outer", 24, 60.0),
    ]
    assert [point.losses for point in points] == [[0.5], [0.3], [0.2, 0.6]]


def test_outer_rows_cost_and_scratch_spends_what_it_is_given(tiny_recipe_file):
    recipe = load_recipe(tiny_recipe_file)
    inner, outer = (progressive_vs_scratch.flops_per_step(recipe, stage) for stage in recipe.stages)
    assert 0 < 2 * inner < outer  # the outer stage accumulates twice, and has a level more
    scratch = progressive_vs_scratch.scratch_recipe(recipe, 10 * outer + 0.4 * outer)
    (stage,) = scratch.stages
    assert (stage.steps, stage.levels, stage.until_plateau) == (10, 2, None)


@pytest.mark.slow
def test_command_trains_both_ways_and_draws_the_curves(tiny_recipe_file, tmp_path, capsys, monkeypatch):
    recipe = load_recipe(tiny_recipe_file)
    plateau = PlateauRecipe(every_steps=2, patience=1, min_gain=0.9, smoothing=0.0)
    stages = (dataclasses.replace(recipe.stages[0], until_plateau=plateau), recipe.stages[1])
    data = dataclasses.replace(recipe.data, validation_split="train")
    grown = dataclasses.replace(dataclasses.replace(recipe, data=data), stages=stages)
    monkeypatch.setattr(progressive_vs_scratch, "load_recipe", lambda path: grown)
    progressive_vs_scratch.main(["--output_dir", str(tmp_path), "--measure_every", "2"])
    report = json.loads((tmp_path / "progressive_vs_scratch.json").read_text())
    spent = [points[-1]["flops"] for points in report.values()]
    assert spent[1] == pytest.approx(spent[0], rel=0.3)  # whole steps of a run of few
    assert (tmp_path / "progressive_vs_scratch.png").stat().st_size > 10_000
    assert capsys.readouterr().out.count("held-out error of v 8 px") == 2
