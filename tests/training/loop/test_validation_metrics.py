# SPDX-License-Identifier: Apache-2.0
"""Validation metrics: images generated for held-out captions are compared with the held-out images, level by level."""

import dataclasses
import json

import pytest
import torch

from diffusers_mdm.evaluation.images import average_down
from diffusers_mdm.training.loop.engine import run_recipe
from diffusers_mdm.training.loop.validation_metrics import ValidationMetrics
from diffusers_mdm.training.recipe.fields import FieldError
from diffusers_mdm.training.recipe.recipe import ValidationRecipe
from diffusers_mdm.training.recipe.stage import PlateauRecipe
from diffusers_mdm.training.state.run import RunOptions
from tests.evaluation.tiny_images import MeanColours, random_images
from tests.training.tiny_run import tiny_recipe


def metrics_recipe(images_dir, **validation):
    recipe = tiny_recipe(images_dir, steps=2)
    settings = {"prompts": (), "metrics": ("retrieval",), "num_metric_images": 3, "num_inference_steps": 1}
    return dataclasses.replace(
        recipe,
        data=dataclasses.replace(recipe.data, validation_split="train"),
        validation=dataclasses.replace(recipe.validation, **{**settings, **validation}),
    )


def test_a_run_logs_metrics_for_every_level_that_it_trains(images_dir, tmp_path):
    options = RunOptions(output_dir=tmp_path / "run", report_to=None, validation_steps=2)
    run_recipe(metrics_recipe(images_dir), options)
    lines = [json.loads(line) for line in (tmp_path / "run" / "history.jsonl").read_text().splitlines()]
    found = {line["step"]: line for line in lines if any(name.startswith("validation_retrieval") for name in line)}
    assert sorted(found) == [2, 4]
    assert "validation_retrieval_own_image/8px" in found[2]
    assert not any("16px" in name for name in found[2])
    assert {f"validation_retrieval_distance/{side}px" for side in (8, 16)} <= found[4].keys()


def test_a_stage_ends_when_a_metric_no_longer_improves(images_dir, tmp_path):
    """After two measurements, each written once, and without samples at the end."""
    recipe = metrics_recipe(images_dir, prompts=("a red apple",))
    plateau = PlateauRecipe(every_steps=1, patience=1, min_gain=0.99, metric="retrieval")
    stage = dataclasses.replace(recipe.stages[0], steps=4, until_plateau=plateau)
    recipe = dataclasses.replace(recipe, stages=(stage,), levels=recipe.levels[:1])
    folder = tmp_path / "run"
    run_recipe(recipe, RunOptions(output_dir=folder, report_to=None, validation_steps=4, skip_final_inference=True))
    lines = [json.loads(line) for line in (folder / "history.jsonl").read_text().splitlines()]
    measured = [line["step"] for line in lines if "validation_retrieval_own_image/8px" in line]
    assert measured == [1, 2]
    progress = json.loads((folder / "checkpoint-2" / "progress.json").read_text())["progress"]
    assert "validation retrieval of level 0" in progress["stage_ended"]
    assert progress["plateau"]["last_step"] == 2
    assert not list(folder.glob("samples/*"))


def test_a_metric_of_a_plateau_has_to_be_measured(images_dir):
    recipe = metrics_recipe(images_dir)
    stage = dataclasses.replace(recipe.stages[0], until_plateau=PlateauRecipe(every_steps=1, metric="fid"))
    with pytest.raises(FieldError, match=r"stages\[0\]\.until_plateau\.metric.*--validation_metrics"):
        dataclasses.replace(recipe, stages=(stage, recipe.stages[1]))


def test_held_out_images_compared_with_themselves_have_no_distance():
    truth = random_images(60)
    images = [truth.pixels.permute(0, 2, 3, 1).numpy()]
    measured = ValidationMetrics(["fid", "retrieval"], [MeanColours()], list(truth.captions), truth.pixels)
    pil = [[pil_image(image) for image in level] for level in images]
    inner = average_down(truth.pixels, 16).permute(0, 2, 3, 1).numpy()
    values = measured.measure([[pil_image(image) for image in inner], *pil])
    for side in (16, 32):
        assert values[f"validation_fid/{side}px"] == pytest.approx(0, abs=1e-4)
        assert values[f"validation_retrieval_own_image/{side}px"] == 1
    noise = torch.randint(0, 256, truth.pixels.shape, generator=torch.Generator().manual_seed(1), dtype=torch.uint8)
    worse = measured.measure([[pil_image(image) for image in noise.permute(0, 2, 3, 1).numpy()]])
    assert worse["validation_fid/32px"] > values["validation_fid/32px"]


def pil_image(pixels):
    from PIL import Image

    return Image.fromarray(pixels)


def test_more_metric_images_than_held_out_images_are_refused(images_dir, tmp_path):
    recipe = metrics_recipe(images_dir, num_metric_images=13)
    with pytest.raises(ValueError, match=r"num_metric_images` is 13, but there are 12 held-out images"):
        run_recipe(recipe, RunOptions(output_dir=tmp_path / "run", report_to=None))


def test_metrics_without_held_out_images_are_refused(images_dir, tmp_path):
    recipe = metrics_recipe(images_dir)
    nothing = dataclasses.replace(recipe, data=dataclasses.replace(recipe.data, validation_split=None))
    with pytest.raises(ValueError, match="there are none: add a validation split"):
        run_recipe(nothing, RunOptions(output_dir=tmp_path / "run", report_to=None))


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"metrics": ("beauty",)}, "'beauty'; choose from fid, kid, clip, retrieval"),
        ({"metrics": ("fid",), "num_metric_images": 49}, "the metric 'fid' needs 50 at least"),
    ],
)
def test_unsuitable_metrics_are_refused(fields, message):
    with pytest.raises(FieldError, match=message):
        ValidationRecipe(**fields)
