# SPDX-License-Identifier: Apache-2.0
"""Variants of the loss differ in what they say they differ in, and every one can be trained."""

import json

import loss_ablation
import pytest
import torch
from loss_ablation import VARIANTS, Classifier, small_recipe, table, variant_recipe

from diffusers_mdm.training.recipe.loading import load_recipe

SMALL = small_recipe(load_recipe(loss_ablation.CLASS_RECIPE), [8, 16, 16], 4)


@pytest.mark.parametrize("name", VARIANTS)
def test_variants_share_everything_but_the_loss(name):
    plain, recipe = (variant_recipe(SMALL, VARIANTS[one], 5) for one in ("epsilon (published)", name))
    assert recipe.sides == (16,)
    assert (recipe.levels, recipe.model, recipe.data) == (plain.levels, plain.model, plain.data)
    stages = [vars(one.stages[0]) for one in (plain, recipe)]
    changed = {field for field in stages[0] if stages[0][field] != stages[1][field]}
    assert changed <= {"loss_weighting", "snr_gamma", "p2_gamma", "sigmoid_bias"}
    assert bool(changed) == (name != "epsilon (published)")


def test_the_classifier_has_a_map_for_each_layer():
    maps = Classifier(5)(torch.zeros(2, 3, 16, 16))
    assert [tuple(one.shape) for one in maps] == [(2, 48, 16, 16), (2, 96, 8, 8), (2, 192, 4, 4)]


def test_the_table_has_differences_within_each_seed():
    def variant(*values):
        return {"steps": 7, "runs": [{"held_out_v": value, "kernel_distance": 0.25} for value in values]}

    lines = table({"plain": variant(0.5, 0.75), "other": variant(0.625, 0.875), "short": variant(0.5)}).splitlines()
    assert lines[2:] == [
        "| plain | 7 | 0.6250 ± 0.1250 |  | 0.2500 ± 0.0000 |  |",
        "| other | 7 | 0.7500 ± 0.1250 | +0.1250 ± 0.0000 | 0.2500 ± 0.0000 | +0.0000 ± 0.0000 |",
        "| short | 7 | 0.5000 | +0.0000 | 0.2500 | +0.0000 |",
    ]


def test_variants_have_the_operations_of_the_plain_loss():
    costs = {"epsilon (published)": 100, "v": 100, "v, alignment": 125, "v, perceptual, classifier given": 250}
    steps = loss_ablation.equal_steps(costs, steps=300, classifier=5000)
    assert list(steps.values()) == [300, 300, 200, 120]


@pytest.mark.slow
def test_the_command_trains_measures_and_continues(tmp_path, capsys):
    words = ["--output_dir", str(tmp_path), "--channels", "8", "16", "16", "--batch_size", "2", "--steps", "1"]
    words += ["--variants", "v, rectified flow", "v, alignment", "--classifier_steps", "1", "--num_images", "50"]
    for number in (1, 2):
        loss_ablation.main([*words, "--num_seeds", str(number)])
    report = json.loads((tmp_path / "loss_ablation.json").read_text(encoding="utf-8"))["variants"]
    for found in report.values():
        assert len(found["runs"]) == 2
        assert all(run["held_out_v"] > 0 for run in found["runs"])
    assert capsys.readouterr().out.count("held_out_v") == 4
    with pytest.raises(ValueError, match="choose another folder"):
        loss_ablation.main([*words, "--steps", "2"])
