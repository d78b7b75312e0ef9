# SPDX-License-Identifier: Apache-2.0
"""The comparison of methods is fair, its measures measure, and what cannot be decided is not."""

import json
import shutil
from pathlib import Path
from typing import cast

import pytest
import torch

from benchmarks.paper import report, run
from benchmarks.paper.measures import measure, sliced_wasserstein
from benchmarks.paper.methods import (
    PARTS,
    Changes,
    changed,
    num_parameters,
    recipes_of,
    shifted_betas,
)
from benchmarks.paper.rows import EMOJI, NAMES, ROWS, Row
from benchmarks.paper.shared_features import without_features
from diffusers_mdm import DiffusionPipeline, MatryoshkaScheduler
from diffusers_mdm.training.loop.start import build_unet
from diffusers_mdm.training.recipe.loading import load_recipe
from tests.training.tiny_run import write_images

DATA = load_recipe(run.RECIPES / "mdm.yaml").data


def test_methods_have_equally_many_parameters():
    counts = {method: num_parameters(method) for method in PARTS}
    assert max(abs(count / counts["mdm"] - 1) for count in counts.values()) < 0.1, counts


def test_the_schedule_is_that_of_the_outer_level():
    shifted = MatryoshkaScheduler(trained_betas=shifted_betas(2.0)).alphas_cumprod
    levels = [torch.zeros(1, 3, 16, 16), torch.zeros(1, 3, 32, 32)]
    times = torch.tensor([0, 300, 700])
    expected = [MatryoshkaScheduler().level_alphas_cumprod(levels, time[None])[1] for time in times]
    torch.testing.assert_close(shifted[times], torch.cat(expected).flatten(), rtol=1e-3, atol=1e-5)


def test_training_from_the_inside_out_costs_the_same():
    recipe = recipes_of("mdm", DATA, 4, None)[0]
    whole, grown = changed(recipe, Changes(), 100), changed(recipe, Changes(inner_share=0.5), 100)
    assert [stage.levels for stage in grown.stages] == [1, 2]
    costs = [run.flops_of(each, [cast(int, stage.steps) for stage in each.stages]) for each in (whole, grown)]
    assert costs[1] == pytest.approx(costs[0], rel=0.02)


@pytest.mark.parametrize(
    ("ways", "depends"),
    [
        ((), (True, True)),
        (("inwards",), (False, True)),
        (("outwards",), (True, False)),
        (("inwards", "outwards"), (False, False)),
    ],
)
def test_without_features_a_level_does_not_depend_on_the_other(ways, depends):
    recipe = recipes_of("mdm", DATA, 4, None)[0]
    unet = build_unet(recipe, 2).eval().requires_grad_(False)
    for name, parameter in unet.named_parameters():
        if "_adapter" in name:
            torch.nn.init.normal_(parameter)

    def predict(inner: float, outer: float) -> list[torch.Tensor]:
        sample = [torch.full((1, 3, 16, 16), inner), torch.full((1, 3, 32, 32), outer)]
        return unet(sample, 500, class_labels=torch.zeros(1, dtype=torch.int64)).sample

    with without_features(ways):
        first, other_outer, other_inner = predict(0.5, 0.5), predict(0.5, -0.5), predict(-0.5, 0.5)
    changes = not torch.equal(first[0], other_outer[0]), not torch.equal(first[1], other_inner[1])
    assert changes == depends
    # The hook is gone.
    assert not torch.equal(predict(0.5, 0.5)[0], predict(0.5, -0.5)[0])


def test_points_are_where_images_and_operations_are_equal():
    recipes = recipes_of("plain", DATA, 4, None)
    settings = run.Settings(Path(), images=3200)
    assert run.points_of(PLAIN, recipes, per_image=2.0, budget=8000.0, settings=settings) == [50, 100, 200, 250]
    assert run.points_of(PLAIN, recipes, per_image=2.0, budget=6500.0, settings=settings) == [50, 100, 200]


def test_steps_of_stages_that_ended_early_are_those_of_the_log(tmp_path):
    lines = [{"stage": "inner", "step": 0}, {"stage": "inner", "step": 7}, {"stage": "all", "step": 10}]
    (tmp_path / run.FILE_NAME).write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert run.steps_done(tmp_path) == [7, 3]


def test_the_distance_grows_with_what_is_wrong():
    draw = torch.Generator().manual_seed(0)
    sets = torch.nn.functional.interpolate(torch.rand(2, 48, 3, 8, 8, generator=draw).flatten(0, 1), (32, 32))
    real, other = sets[:48], sets[48:]
    same, near, far = (
        sum(sliced_wasserstein(each, real)) for each in (real, other, torch.rand(48, 3, 32, 32, generator=draw))
    )
    # Patches of equal sets are at other places, so that their distance is small, and not 0.
    assert 0 < same < near < 0.2 * far
    assert measure(real, other, real)["copying"] > 0.1 > abs(measure(other.flip(-1), other, real)["copying"])
    assert measure(real, real, other, range(48))["retrieval"] == 1.0
    with pytest.raises(ValueError, match="equal"):
        sliced_wasserstein(real[:2], real)


def result(row: Row, seed: int, distance: float, images: int = 64, flops: float = 1e9) -> dict:
    keys = {"distance": distance, "distance_16": distance, "distance_32": distance, "copying": 0.0, "floor": 1.0}
    where = {"drawing": "", "row": row.name, "data": row.data, "seed": seed, "images": images, "flops": flops}
    return {**where, **keys, "held_out_loss": [0.5, 0.6]}


MDM, PLAIN = (row for row in ROWS[:2])


@pytest.mark.parametrize(
    ("distances", "seeds", "said"),
    [
        ((100.0, 200.0), 3, "**holds at this scale** (101 and 201, 122.5 standard errors apart)"),
        ((200.0, 100.0), 3, "**does not hold at this scale**"),
        ((100.0, 100.5), 3, "no difference"),
        ((100.0, 200.0), 2, "not decided"),
    ],
)
def test_claims_need_seeds_and_a_difference(distances, seeds, said):
    results = [result(row, s, d + s) for row, d in zip((MDM, PLAIN), distances, strict=True) for s in range(seeds)]
    found = list(report.claims(results))
    assert said in found[0]
    assert len(found) == 2
    assert found[1].startswith("- Not measured in the time: emoji, MDM is better than cascade after equal images")


def test_a_row_of_another_cost_is_compared_at_equal_images_and_at_equal_operations():
    half = next(row for row in ROWS if row.changes.stage.get("batch_fractions"))
    results = [result(MDM, seed, 100.0 + seed) for seed in range(3)]
    for images, flops, distance in ((64, 0.8e9, 120.0), (80, 1e9, 90.0)):
        results += [result(half, seed, distance + seed, images, flops) for seed in range(3)]
    said = [line for line in report.claims(results) if "batch" in line]
    assert "is better than half, equal images: **holds at this scale** (101 and 121" in said[0]
    assert "is better than half, equal operations: **does not hold at this scale** (101 and 91" in said[1]
    assert [line.split(" | ")[3:5] for line in report.ablation_table(results) if "batch" in line] == [
        ["64", "8.00e+08"],
        ["80", "1.00e+09"],
    ]


def test_few_images_are_compared_by_what_they_cost():
    names = {"mdm on 10 %": 120.0, "simple on 10 %": 190.0, MDM.name: 100.0, PLAIN.name: 110.0}
    rows = [row for row in ROWS if row.name in names and row.data == EMOJI]
    results = [result(row, seed, names[row.name] + seed) for row in rows for seed in range(3)]
    said = "\n".join(report.claims(results))
    assert "a tenth of the images: **holds at this scale** (the distance rises by 20 and by 80" in said


def test_rows_are_run_seed_by_seed_and_question_by_question():
    order = list(run.in_order(ROWS, 2))
    assert [(row.method, seed) for row, seed in order[:5]] == [*((method, 0) for method in NAMES), ("mdm", 1)]
    assert len(order) == len({(row.folder, seed) for row, seed in order}) == 2 * len(ROWS)
    assert len({row.folder for row in ROWS}) == len(ROWS)


@pytest.mark.slow
def test_a_tiny_point_of_every_method_and_question_makes_a_report(tmp_path):
    """Drawn shapes take the place of the photographs."""
    birds = write_images(tmp_path / "birds", 32)
    shutil.copy(birds / "train-00000-of-00001.parquet", birds / "validation-00000-of-00001.parquet")
    first_of_groups = {row.group: row.name for row in reversed(ROWS) if row.data == EMOJI}
    names = {*NAMES.values(), *first_of_groups.values()}
    out = tmp_path / "runs"
    words = ["--output_dir", str(out), "--images", "32", "--num_different", "32", "--num_drawn", "8", "--seeds", "1"]
    words += ["--birds", str(birds), "--rows", *names]
    run.main(words)
    first = (out / run.RESULTS).read_text()
    run.main(words)
    assert (out / run.RESULTS).read_text() == first
    found = {(entry["row"], entry["data"]) for entry in map(json.loads, first.splitlines())}
    assert found == {(row.name, row.data) for row in ROWS if row.name in names}
    separate = next(row for row in ROWS if len(row.changes.no_features) == 2)
    unet = DiffusionPipeline.from_pretrained(out / separate.folder / "0" / "mdm").unet
    assert not any(values.any() for name, values in unet.named_parameters() if "_adapter" in name)
    costs = {entry["row"]: entry["flops"] for entry in map(json.loads, first.splitlines()) if entry["data"] == EMOJI}
    assert 0.9 * costs[MDM.name] < costs[separate.name] < costs[MDM.name]
    page = tmp_path / "README.md"
    page.write_text(f"before\n{report.BEGIN}\nstale\n{report.END}\nafter\n")
    report.write_report(out, page)
    text = page.read_text()
    assert text.startswith("before\n")
    assert text.endswith("after\n")
    assert "stale" not in text
    assert "**not decided** (1 and 1 seeds of three were run)" in text
    assert {"emoji.png", "emoji-drawings.png"} < {path.name for path in (tmp_path / "results").iterdir()}
    kept = json.loads((tmp_path / "results" / f"{MDM.folder}.json").read_text())
    assert list(kept["recipes"]) == ["mdm"]
    assert "validation_loss/level_1" in kept["logs"]["mdm, seed 0"][-1]
