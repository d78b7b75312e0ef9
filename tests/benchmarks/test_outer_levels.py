# SPDX-License-Identifier: Apache-2.0
"""Variants of the outer level differ in what they say they differ in, and start from one inner level."""

import json

import outer_levels
import pytest
from outer_levels import VARIANTS, inner_recipe, outer_recipe, summarised

from diffusers_mdm.training.recipe.loading import load_recipe

RECIPE = load_recipe(outer_levels.EMOJI_RECIPE)


@pytest.mark.parametrize("name", VARIANTS)
def test_variants_share_everything_but_the_outer_level(name, tmp_path):
    inner, outer = inner_recipe(RECIPE, 5), outer_recipe(RECIPE, VARIANTS[name], tmp_path, 7)
    assert (inner.sides, outer.sides) == ((16,), (16, 64))
    assert (inner.stages[0].steps, outer.stages[0].steps) == (5, 7)
    assert outer.levels[0] == inner.levels[0]
    assert outer.scheduler["prediction_type"] == ["v_prediction", VARIANTS[name].prediction]
    assert outer.stages[0].images_per_step == RECIPE.stages[1].images_per_step
    assert outer.pretrained.path == str(tmp_path)


def test_summaries_have_means_and_standard_errors():
    runs = [{"25 DDIM": {"noise": value}} for value in (1.0, 2.0, 3.0)]
    assert summarised(runs)["25 DDIM"]["noise"] == [2.0, pytest.approx(3**-0.5)]


@pytest.mark.slow
def test_the_command_trains_measures_and_continues(tmp_path, capsys):
    words = ["--output_dir", str(tmp_path), "--variants", "residual", "--num_seeds", "2", "--inner_steps", "1"]
    words += ["--outer_steps", "1", "--num_captions", "2"]
    text = outer_levels.EMOJI_RECIPE.read_text(encoding="utf-8")
    for size in ("1024", "256", "512"):
        text = text.replace(f"batch_size: {size}", "batch_size: 2")
    data = outer_levels.EMOJI_RECIPE.parents[1] / "data" / "emoji-styles-64"
    text = text.replace("../data/emoji-styles-64", str(data))
    (tmp_path / "small.yaml").write_text(text, encoding="utf-8")
    words += ["--recipe", str(tmp_path / "small.yaml")]
    outer_levels.main(words)
    first = json.loads((tmp_path / "outer_levels.json").read_text(encoding="utf-8"))
    outer_levels.main(words)
    again = json.loads((tmp_path / "outer_levels.json").read_text(encoding="utf-8"))
    assert first["residual"] == again["residual"]
    assert set(first["residual"]) == set(outer_levels.SETTINGS)
    assert "residual; 25 DDIM: noise" in capsys.readouterr().out
