# SPDX-License-Identifier: Apache-2.0
"""Variants of the outer level differ in what they say they differ in, and start from one inner level."""

import json

import outer_levels
import pytest
import torch
from outer_levels import VARIANTS, inner_recipe, outer_recipe, summarised

from diffusers_mdm import MatryoshkaScheduler, MDMPipeline
from diffusers_mdm.training.recipe.loading import load_recipe
from tests.pipelines.tiny_pipeline import make_pipeline

RECIPE = load_recipe(outer_levels.EMOJI_RECIPE)


@pytest.mark.parametrize("name", VARIANTS)
def test_variants_share_everything_but_the_outer_level(name, tmp_path):
    args = outer_levels.parse_args(["--output_dir", str(tmp_path), "--outer_steps", "7"])
    inner, outer = inner_recipe(RECIPE, 5), outer_recipe(RECIPE, VARIANTS[name], tmp_path, args)
    assert (inner.sides, outer.sides) == ((16,), (16, 64))
    assert (inner.stages[0].steps, outer.stages[0].steps) == (5, 7)
    assert outer.levels[0] == inner.levels[0]
    assert outer.scheduler["prediction_type"] == ["v_prediction", VARIANTS[name].prediction]
    assert outer.stages[0].images_per_step == RECIPE.stages[1].images_per_step
    assert outer.pretrained.path == str(tmp_path)


def test_flags_change_the_outer_stage(tmp_path):
    words = ["--output_dir", str(tmp_path), "--outer_batch_size", "3", "--outer_warmup_steps", "0"]
    args = outer_levels.parse_args([*words, "--outer_ema_decay", "0.5"])
    (stage,) = outer_recipe(RECIPE, VARIANTS["sample"], tmp_path, args).stages
    assert (stage.batch_size, stage.lr_warmup_steps, stage.ema_decay) == (3, 0, 0.5)
    assert stage.steps == RECIPE.stages[1].steps


def test_the_inner_level_can_be_that_of_a_pipeline(tmp_path):
    pipeline = make_pipeline()
    pipeline.scheduler = MatryoshkaScheduler(prediction_type=["v_prediction", "sample"])
    pipeline.save_pretrained(tmp_path / "whole")
    outer_levels.save_inner_level(tmp_path / "whole", tmp_path / "inner")
    inner = MDMPipeline.from_pretrained(tmp_path / "inner")
    assert inner.scheduler.config.prediction_type == "v_prediction"
    assert inner.unet.num_levels == 1
    for name, value in inner.unet.levels[0].state_dict().items():
        assert torch.equal(value, pipeline.unet.levels[0].state_dict()[name])


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
