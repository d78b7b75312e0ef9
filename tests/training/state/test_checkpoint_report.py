# SPDX-License-Identifier: Apache-2.0
"""What a checkpoint says of itself is checked by type and range, and against the recipe, before a run uses it."""

import copy
import dataclasses
import json
import re

import pytest

from diffusers_mdm.training.recipe.loading import load_recipe
from diffusers_mdm.training.state.checkpoint_report import compare, read_report, why_too_far
from diffusers_mdm.training.state.progress import ALL_STEPS, PlateauState, Progress
from tests.training.tiny_run import RECIPES

REPORT = {
    "seed": 0,
    "progress": dataclasses.asdict(
        Progress(
            stage_index=1,
            stage_step=3,
            stage_images=24,
            total_steps=7,
            total_images=40,
            stage_ends=(f"inner: {ALL_STEPS}",),
            finished_steps=(4,),
            finished_images=(16,),
            plateau=PlateauState(measurements=1, average=0.5, best=0.5, best_step=2, last_step=2),
        )
    ),
    "averages": {"text_encoder": 7, "unet": 7},
    "scaler": None,
    "num_levels": 2,
}


@pytest.fixture(scope="module")
def recipe():
    return load_recipe(RECIPES / "tiny.yaml")


@pytest.fixture
def report(recipe):
    return {**copy.deepcopy(REPORT), "recipe": dataclasses.asdict(recipe)}


def written(folder, report):
    (folder / "progress.json").write_text(report if isinstance(report, str) else json.dumps(report))
    return folder


def test_a_report_comes_back(report, recipe, tmp_path):
    found = read_report(written(tmp_path, report))
    assert json.loads(json.dumps(dataclasses.asdict(found))) == json.loads(json.dumps(report))
    assert compare(found, tmp_path, recipe, 0).recipe == recipe
    assert why_too_far(found, recipe) is None


def test_reports_of_older_versions_are_read(report, recipe, tmp_path):
    """They count neither the steps of finished stages nor the images of the current one."""
    for name in ("stage_images", "finished_steps", "finished_images"):
        del report["progress"][name]
    report["progress"]["plateau"] = {}
    del report["seed"]
    found = read_report(written(tmp_path, report))
    assert found.progress.finished_steps == (None,)
    assert found.progress.images_of(recipe.stages[1]) == 3 * 8
    assert compare(found, tmp_path, recipe, 0).recipe == recipe
    assert why_too_far(found, recipe) is None


FORGED = [
    ("progress.new_counter", 1),
    ("progress.stage_index", -1),
    ("progress.stage_index", "1"),
    ("progress.stage_index", 1.0),
    ("progress.stage_index", True),
    ("progress.stage_index", None),
    ("progress.stage_index", 2),  # there is one reason for two finished stages
    ("progress.stage_step", 10**9),
    ("progress.stage_step", 10**40),
    ("progress.stage_step", -3),
    ("progress.total_steps", 10**9),
    ("progress.total_images", -1),
    ("progress.total_images", 6),
    ("progress.stage_images", 10**9),
    ("progress.skipped_steps", 8),
    ("progress.skipped_in_a_row", 10**9),
    ("progress.stage_ended", 5),
    ("progress.stage_ends", "inner"),
    ("progress.stage_ends", [None]),
    ("progress.finished_steps", [4, 4]),
    ("progress.finished_steps", ["4"]),
    ("progress.finished_images", [-16]),
    ("progress.plateau", None),
    ("progress.plateau.best", float("nan")),
    ("progress.plateau.average", float("inf")),
    ("progress.plateau.without_gain", -1),
    ("progress.plateau.last_step", 10**9),
    ("progress", []),
    ("averages.unet", "7"),
    ("averages.unet", -1),
    ("averages.unet", 10**9),
    ("averages", None),
    ("scaler", {"scale": "65536"}),
    ("scaler", 1),
    ("num_levels", "2"),
    ("recipe", None),
    ("written_by", "diffusers_mdm 9.0"),
]


@pytest.mark.parametrize(("field", "value"), FORGED, ids=[f"{field}={value!r:.20}" for field, value in FORGED])
def test_what_cannot_be_is_refused_by_name(report, tmp_path, field, value):
    *path, name = field.split(".")
    place = report
    for part in path:
        place = place[part]
    place[name] = value
    with pytest.raises(ValueError, match=re.escape(path[0] if path else name)) as refused:
        read_report(written(tmp_path, report))
    message = str(refused.value)
    assert "progress.json" in message
    assert "--resume_from_checkpoint" in message


@pytest.mark.parametrize("text", ["", "{", "[]", "null", "7", "[" * 100_000, '{"progress": {}}', "\ud83d"])
def test_what_is_no_report_is_refused(tmp_path, text):
    (tmp_path / "progress.json").write_bytes(text.encode("utf-8", errors="surrogatepass"))
    with pytest.raises(ValueError, match=r"progress\.json"):
        read_report(tmp_path)
    with pytest.raises(ValueError, match=r"progress\.json"):
        read_report(tmp_path / "missing")


def test_checkpoints_of_other_stages_and_levels_are_refused(report, recipe, tmp_path):
    found = read_report(written(tmp_path, report))
    first, second = recipe.stages
    for stages in ((first,), (first, dataclasses.replace(first, name="again"), second)):
        with pytest.raises(ValueError, match=r"stages\[1\]"):
            compare(found, tmp_path, dataclasses.replace(recipe, stages=stages), 0)
    with pytest.raises(ValueError, match="has 1 levels, but its stage 'outer' trains 2"):
        compare(dataclasses.replace(found, num_levels=1), tmp_path, recipe, 0)


@pytest.mark.parametrize(
    ("fields", "suits"),
    [
        ({"steps": 4}, True),
        ({"steps": 2}, True),
        ({"steps": 5}, False),
        ({"steps": None, "images": 16}, True),
        ({"steps": None, "images": 17}, False),
        ({"steps": 9, "images": 12}, True),  # the first to come counts
    ],
)
def test_a_finished_stage_that_is_to_be_longer_needs_an_older_checkpoint(report, recipe, tmp_path, fields, suits):
    found = read_report(written(tmp_path, report))
    first, second = recipe.stages
    longer = dataclasses.replace(recipe, stages=(dataclasses.replace(first, **fields), second))
    problem = why_too_far(found, longer)
    assert (problem is None) == suits
    if not suits:
        assert "'inner' had ended after 4 steps (16 images)" in problem
