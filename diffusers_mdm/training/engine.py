# SPDX-License-Identifier: Apache-2.0
"""Running a recipe: start or resume, train its stages in order, save the pipeline."""

import dataclasses
import json
import logging
from pathlib import Path

import torch
from accelerate import Accelerator
from accelerate.utils import ProjectConfiguration, set_seed

from ..models.level_config import LevelConfig
from ..models.nested_unet import NestedUNetModel
from ..schedulers.scheduling_matryoshka import MatryoshkaScheduler
from .checkpoints import list_checkpoints, load_checkpoint, save_checkpoint
from .data import CaptionedImages, load_captioned_split
from .recipe import Recipe
from .run import Run, RunOptions
from .stage import train_stage
from .text_encoder import build_text_encoder
from .validation import draw_validation_grid

logger = logging.getLogger(__name__)

SAVE_DTYPES = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}


def run_recipe(recipe: Recipe, options: RunOptions) -> Path:
    """Train every stage of `recipe` and save the pipeline to `output_dir`; repeating the call resumes.

    Returns:
        The folder that `MDMPipeline.from_pretrained` loads.
    """
    recipe = resolve_recipe(recipe, options)
    rows = load_captioned_split(recipe.data, recipe.data.train_split)
    run = start_run(recipe, options, rows[recipe.data.caption_column])
    resume_run(run)
    for stage in recipe.stages[run.progress.stage_index :]:
        side = stage_side(recipe, stage.levels)
        logger.info("Stage %s: %d level(s), %d pixels, %d steps.", stage.name, stage.levels, side, stage.steps)
        train_stage(run, stage, CaptionedImages(rows, recipe.data, side), keep_checkpoint)
    output_dir = save_pipeline(run)
    run.accelerator.end_training()
    return output_dir


def resolve_recipe(recipe: Recipe, options: RunOptions) -> Recipe:
    """Apply the command's overrides: `max_train_steps` limits every stage, `mixed_precision` replaces the recipe's."""
    limit = options.max_train_steps
    if limit is not None:
        stages = tuple(dataclasses.replace(stage, steps=min(stage.steps, limit)) for stage in recipe.stages)
        recipe = dataclasses.replace(recipe, stages=stages)
    if options.mixed_precision is not None:
        recipe = dataclasses.replace(recipe, mixed_precision=options.mixed_precision)
    return recipe


def start_run(recipe: Recipe, options: RunOptions, captions: list[str]) -> Run:
    """Make the models from scratch, as the first stage needs them, and write the recipe into the output folder."""
    accelerator = Accelerator(
        mixed_precision=recipe.mixed_precision,
        log_with=options.report_to,
        project_config=ProjectConfiguration(str(options.output_dir), logging_dir=str(options.output_dir / "logs")),
    )
    set_seed(options.seed)
    text_encoder, tokenizer = build_text_encoder(recipe.text_encoder, [caption or "" for caption in captions])
    text_encoder.requires_grad_(recipe.text_encoder.train_text_encoder)
    unet = build_unet(recipe, recipe.stages[0].levels)
    scheduler = MatryoshkaScheduler(**{"base_sample_size": recipe.sample_size, **recipe.scheduler})
    if accelerator.is_main_process:
        options.output_dir.mkdir(parents=True, exist_ok=True)
        (options.output_dir / "recipe.json").write_text(json.dumps(dataclasses.asdict(recipe), indent=2))
    accelerator.init_trackers("training")
    return Run(recipe, options, accelerator, unet, text_encoder, tokenizer, scheduler)


def build_unet(recipe: Recipe, num_levels: int) -> NestedUNetModel:
    """A new model with the inner `num_levels` levels of the recipe; `zero_init` silences its branches and output."""
    unet = NestedUNetModel(**recipe.model, **LevelConfig.columns_from(recipe.rows[:num_levels]))
    if recipe.zero_init:
        unet.zero_init_()
    return unet


def resume_run(run: Run) -> None:
    """Load the newest complete checkpoint, if there is one and it is wanted."""
    checkpoints = list_checkpoints(run.options.output_dir)
    if run.options.resume_from_checkpoint == "none" or not checkpoints:
        return
    load_checkpoint(run, checkpoints[-1])
    progress = run.progress
    logger.info("Resuming from %s (stage %d, step %d).", checkpoints[-1], progress.stage_index, progress.stage_step)


def stage_side(recipe: Recipe, num_levels: int) -> int:
    """Side in pixels of the outermost of the inner `num_levels` levels."""
    side = recipe.sample_size
    for row in recipe.rows[1:num_levels]:
        side *= row.ratio
    return side


def keep_checkpoint(run: Run) -> None:
    """Save a checkpoint and draw the validation prompts."""
    run.accelerator.wait_for_everyone()
    if run.accelerator.is_main_process:
        logger.info("Saved %s.", save_checkpoint(run))
        draw_validation_grid(run)
    run.accelerator.wait_for_everyone()


def save_pipeline(run: Run) -> Path:
    """Save the pipeline with averaged weights in `save_dtype` to the output folder; the run ends with this.

    The run's modules keep the averaged and rounded weights; its last checkpoint has the exact ones.
    """
    if run.accelerator.is_main_process:
        dtype = SAVE_DTYPES[run.options.save_dtype]
        for name, average in run.ema.items():
            average.copy_to(run.trained_modules[name].parameters())
        for module in (run.text_encoder, run.unet):
            torch.nn.Module.to(module.eval(), dtype=dtype)  # the host's own `to` warns about dtypes it would keep
        run.pipeline().save_pretrained(run.options.output_dir)
        logger.info("Saved the pipeline to %s.", run.options.output_dir)
    run.accelerator.wait_for_everyone()
    return run.options.output_dir
