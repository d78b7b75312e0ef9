# SPDX-License-Identifier: Apache-2.0
"""Running a recipe: start or resume, train its stages in order, save the pipeline."""

import contextlib
import dataclasses
from pathlib import Path

from ...processes import is_main_launched
from ..recipe.recipe import Recipe
from ..state.output_lock import only_run_in
from ..state.run import RunOptions
from .finish import report_result, save_pipeline
from .interruption import Interruption
from .stage import train_stage
from .stage_data import check_text_encoder, open_embeddings, open_stage_data, report_data
from .start import resume_run, start_run


def run_recipe(recipe: Recipe, options: RunOptions) -> Path:
    """Train every stage of `recipe` and save the pipeline to `output_dir`; repeating the call resumes.

    Returns:
        The output folder, which `from_pretrained` of `pipeline_class(recipe)` (for LoRA `load_lora_weights`) loads.

    Raises:
        RunInterrupted: the run was stopped by a signal; a checkpoint is saved.
        FloatingPointError: too many steps in a row were not finite; a checkpoint is saved.
        ValueError: something in the recipe, the data or the checkpoint is wrong.
    """
    with only_run_in(options.output_dir) if is_main_launched() else contextlib.nullcontext():
        return run_alone(resolve_recipe(recipe, options), options)


def run_alone(recipe: Recipe, options: RunOptions) -> Path:
    """Run a recipe in an output folder that is locked."""
    run = start_run(recipe, options)
    resume_run(run)
    report_data(run)
    embeddings = open_embeddings(run.recipe)
    check_text_encoder(run, embeddings)
    interruption = Interruption()
    with interruption.listening():
        for stage in run.recipe.stages[run.progress.stage_index :]:
            train_stage(run, stage, open_stage_data(run, stage, embeddings), interruption)
    save_pipeline(run)
    report_result(run)
    return options.output_dir


def resolve_recipe(recipe: Recipe, options: RunOptions) -> Recipe:
    """Apply the command's overrides: `max_train_steps` limits every stage, `mixed_precision` replaces the recipe's."""
    limit = options.max_train_steps
    if limit is not None:
        stages = tuple(dataclasses.replace(stage, steps=min(stage.steps or limit, limit)) for stage in recipe.stages)
        recipe = dataclasses.replace(recipe, stages=stages)
    if options.mixed_precision is not None:
        recipe = dataclasses.replace(recipe, mixed_precision=options.mixed_precision)
    return recipe
