# SPDX-License-Identifier: Apache-2.0
import json

import pytest
import weight_sharing

from diffusers_mdm.training.loop.start import build_unet
from diffusers_mdm.training.recipe.loading import load_recipe


def test_ways_differ_in_nothing_but_the_layers_they_share(tiny_recipe_file):
    base = load_recipe(tiny_recipe_file)
    models = {
        name: build_unet(weight_sharing.sharing_recipe(base, settings, 3), 2)
        for name, settings in weight_sharing.WAYS.items()
    }
    sizes = {name: sum(parameter.numel() for parameter in model.parameters()) for name, model in models.items()}
    assert sizes["blocks"] < sizes["time embedding"] < sizes["no sharing"]
    # Every convolution of the outer level's encoder and decoder blocks is the inner one's.
    own = [name for name, _ in models["blocks"].levels[1].named_parameters() if ".resnets" in name]
    unshared = [name for name, _ in models["no sharing"].levels[1].named_parameters() if ".resnets" in name]
    assert not own
    assert unshared


def test_recipe_trains_both_levels_for_the_steps_asked_for(tiny_recipe_file):
    recipe = weight_sharing.sharing_recipe(load_recipe(tiny_recipe_file), {"share_blocks": True}, 7)
    (stage,) = recipe.stages
    assert (stage.steps, stage.levels, stage.samples_per_level) == (7, 2, (4, 2))
    assert recipe.levels[1]["block_out_channels"] == recipe.levels[0]["block_out_channels"]


def test_held_out_losses_are_those_of_whole_levels():
    rows = [
        {"step": 1, "loss/level_0": 3.0},
        {"step": 2, "validation_loss/level_1": 0.4, "validation_loss/level_0": 0.3},
        {"step": 4, "validation_loss/level_0": 0.2, "validation_loss/level_0/quartile_1": 9.0},
    ]
    assert weight_sharing.held_out_losses(rows) == {2: [0.3, 0.4], 4: [0.2]}


@pytest.mark.slow
def test_command_trains_every_way_and_writes_the_numbers(tiny_recipe_file, tmp_path, capsys):
    text = tiny_recipe_file.read_text()
    tiny_recipe_file.write_text(text.replace("data:\n", "data:\n  validation_split: train\n"))
    settings = ["--steps", "2", "--measure_every", "2", "--rounds", "1"]
    weight_sharing.main(["--recipe", str(tiny_recipe_file), "--output_dir", str(tmp_path), *settings])
    report = json.loads((tmp_path / "weight_sharing.json").read_text())
    assert set(report) == set(weight_sharing.WAYS)
    for way in report.values():
        assert len(way["losses"]["2"]) == 2
        assert way["step_ratio"] > 0
    assert report["no sharing"]["step_ratio"] == 1
    assert capsys.readouterr().out.count("held-out error of v after 2 steps: 8 px") == 3
