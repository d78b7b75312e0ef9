# SPDX-License-Identifier: Apache-2.0
"""The part of a card about the training: what was added to the loss, and what was measured."""

import dataclasses

from diffusers_mdm.training.recipe.loading import load_recipe
from diffusers_mdm.training.recipe.stage import AlignmentRecipe
from diffusers_mdm.training.reports.card_training import loss_lines, metrics_text
from diffusers_mdm.training.reports.stage_results import Stretch, stretch_settings
from tests.training.tiny_run import RECIPES

TINY = load_recipe(RECIPES / "tiny.yaml")


def stretches(recipe) -> list[Stretch]:
    return [Stretch(stage, 4, 16, stretch_settings(recipe, stage, 1, "no", 0)) for stage in recipe.stages]


def test_what_all_stages_minimise_is_said_once():
    assert list(loss_lines(stretches(TINY))) == ["- loss of every level: squared error of the noise"]


def test_what_some_stages_minimise_is_said_with_their_names():
    inner, outer = TINY.stages
    alignment = AlignmentRecipe("someone/<encoder>", stages=(inner.name,))
    stages = (dataclasses.replace(inner, loss_weighting="v"), outer)
    assert list(loss_lines(stretches(dataclasses.replace(TINY, stages=stages, alignment=alignment)))) == [
        "- loss of every level: squared error of v, in `inner`",
        r"- added loss: alignment of level 0 with someone/\<encoder\>, weight 0.5, in `inner`",
        "- loss of every level: squared error of the noise, in `outer`",
    ]


def test_metrics_are_a_table_with_a_column_for_each_level():
    rows = [{"validation_fid/8px": 5.25, "validation_kid/16px": 0.5}]
    assert list(metrics_text(TINY, rows)) == []
    validation = dataclasses.replace(TINY.validation, metrics=("fid", "kid"))
    text, table = metrics_text(dataclasses.replace(TINY, validation=validation), rows)
    assert "fid and kid of 64 generated and as many held-out images" in text
    assert table.splitlines() == [
        "| metric | 8 pixels | 16 pixels |",
        "|---|--:|--:|",
        "| fid | 5.25 | – |",
        "| kid | – | 0.5 |",
    ]
