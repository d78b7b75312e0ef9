# SPDX-License-Identifier: Apache-2.0
"""How far a reader has to go: limits of what `benchmarks/reading_paths.py` measures of pipelines."""

import pytest

from benchmarks.reading_paths import classes_above, modules_of_a_drawing
from diffusers_mdm.registration import PIPELINES
from tests.pipelines.tiny_pipeline import make_pipeline

MAX_MODULES = 18
MAX_CLASSES_ABOVE = 3


def test_one_call_runs_through_few_modules():
    modules = modules_of_a_drawing(make_pipeline(), "a green apple")
    assert {"pipelines.pipeline_mdm", "models.blocks", "schedulers.reverse_steps", "checked_values"} <= set(modules)
    assert len(modules) <= MAX_MODULES, modules


@pytest.mark.parametrize("pipeline", PIPELINES, ids=lambda entry: entry.__name__)
def test_a_pipeline_inherits_from_few_classes_of_ours(pipeline):
    assert len(classes_above(pipeline)) <= MAX_CLASSES_ABOVE
