# SPDX-License-Identifier: Apache-2.0
"""How far a reader has to go: limits of what `benchmarks/reading_paths.py` measures."""

import dataclasses

from benchmarks.reading_paths import (
    circles,
    folder_sizes,
    import_graph,
    modules_of_a_step,
)
from diffusers_mdm.training.loop.engine import run_recipe
from diffusers_mdm.training.recipe.recipe import ValidationRecipe
from diffusers_mdm.training.state.run import RunOptions
from tests.training.tiny_run import tiny_recipe, write_images

MAX_MODULES_OF_A_STEP = 22
MAX_MODULES_IN_A_FOLDER = 16


def test_one_optimizer_step_runs_through_few_modules(tmp_path):
    recipe = tiny_recipe(write_images(tmp_path / "pictures"), steps=1)
    recipe = dataclasses.replace(recipe, stages=recipe.stages[-1:], validation=ValidationRecipe())
    options = RunOptions(output_dir=tmp_path / "run", report_to=None)
    entered = modules_of_a_step(lambda: run_recipe(recipe, options))
    assert {"training.loss.pyramid_loss", "models.nested_unet"} <= set(entered)
    assert len(entered) <= MAX_MODULES_OF_A_STEP, entered


def test_a_folder_can_be_looked_over():
    for folder, size in folder_sizes().items():
        assert size <= MAX_MODULES_IN_A_FOLDER, folder


def test_imports_have_no_circles():
    """Imports for type checks and inside of functions counted."""
    assert not circles(import_graph())


def test_circles_are_found():
    graph = {"a": {"b"}, "b": {"c"}, "c": {"a", "d"}, "d": set()}
    assert circles(graph) == [["a", "b", "c"]]
