# SPDX-License-Identifier: Apache-2.0
"""Running a recipe: start or resume, train its stages in order, save the pipeline."""

import contextlib
import dataclasses
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import torch
from accelerate import Accelerator
from accelerate.utils import ProjectConfiguration, set_seed
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from ...models.level_config import LevelConfig
from ...models.nested_unet import NestedUNetModel
from ...pipelines.drawing.latent_space import scale_factor
from ...processes import is_main_launched, join_processes, wait_for_everyone
from ...schedulers.scheduling_matryoshka import MatryoshkaScheduler
from ..data.class_names import find_class_names
from ..data.subjects import prepare_class_pictures
from ..modules.autoencoder import check_clipping, open_vae
from ..modules.classes import keep_class_names, num_class_embeds, pipeline_class
from ..modules.growth import check_frames_can_become
from ..modules.lora import add_lora, save_lora
from ..modules.saved_configs import forget_origin
from ..modules.text_encoder import build_text_encoder, check_text_width, frozen_text_encoder
from ..precision import DTYPES
from ..recipe.clip_rows import inner_rows, stage_frames, stage_rows
from ..recipe.recipe import Recipe
from ..recipe.writing import write_recipe
from ..reports.hub import prepare_repository, push_output
from ..reports.model_card import write_model_card
from ..reports.trackers import start_trackers, tracker_names
from ..reports.validation_grid import check_prompts, draw_validation_grid
from ..state.checkpoint_folders import set_aside_newer
from ..state.checkpoints import WRITE_ERRORS, load_checkpoint, save_checkpoint
from ..state.complete_folders import finish_interrupted
from ..state.finished_files import finish_moving, finished_files
from ..state.history import FILE_NAME, History
from ..state.output_lock import only_run_in
from ..state.resuming import Start, find_start
from ..state.run import Run, RunOptions
from ..state.sharding import check_supported
from .held_out import open_held_out
from .interruption import Interruption
from .stage import StageHooks, train_stage
from .stage_data import (
    all_training_captions,
    check_text_encoder,
    open_embeddings,
    open_joint_pictures,
    open_stage_images,
    report_data,
    stage_side,
)
from .text_features import write_own_embeddings

logger = logging.getLogger(__name__)


def run_recipe(recipe: Recipe, options: RunOptions) -> Path:
    """Train every stage of `recipe` and save the pipeline to `output_dir`; repeating the call resumes.

    Returns:
        The folder that the `from_pretrained` of `pipeline_class(recipe)` (with LoRA: `load_lora_weights`) loads.

    Raises:
        RunInterrupted: a signal asked the run to stop; a checkpoint is saved.
        FloatingPointError: too many steps in a row were not finite; a checkpoint is saved.
        ValueError: something in the recipe, the data or the checkpoint does not fit.
    """
    with only_run_in(options.output_dir) if is_main_launched() else contextlib.nullcontext():
        return run_alone(resolve_recipe(recipe, options), options)


def run_alone(recipe: Recipe, options: RunOptions) -> Path:
    """Do what `run_recipe` promises, in a folder that no other run writes into."""
    run = start_run(recipe, options)
    resume_run(run)
    recipe = run.recipe
    interruption, embeddings = Interruption(), open_embeddings(recipe)
    if run.accelerator.is_main_process:
        report_data(recipe)
    check_text_encoder(run, embeddings)
    with interruption.listening():
        for stage in recipe.stages[run.progress.stage_index :]:
            factor = scale_factor(run.vae)
            side = stage_side(recipe, stage, factor)
            frames = stage_frames(recipe, stage)
            clips = f", {frames} frames" if frames > 1 else ""
            logger.info("Stage %s: %d level(s), %d pixels%s.", stage.name, stage.levels, side, clips)
            images = open_stage_images(recipe, stage, embeddings, factor)
            pictures = open_joint_pictures(recipe, stage, embeddings, factor)
            hooks = StageHooks(keep_checkpoint, draw_validation, open_held_out(run, stage, embeddings), interruption)
            train_stage(run, stage, images, hooks, pictures)
    output_dir = save_pipeline(run)
    report_result(run)
    return output_dir


def resolve_recipe(recipe: Recipe, options: RunOptions) -> Recipe:
    """Apply the command's overrides: `max_train_steps` limits every stage, `mixed_precision` replaces the recipe's."""
    limit = options.max_train_steps
    if limit is not None:
        stages = tuple(dataclasses.replace(stage, steps=min(stage.steps or limit, limit)) for stage in recipe.stages)
        recipe = dataclasses.replace(recipe, stages=stages)
    if options.mixed_precision is not None:
        recipe = dataclasses.replace(recipe, mixed_precision=options.mixed_precision)
    return recipe


def start_run(recipe: Recipe, options: RunOptions) -> Run:
    """Make or load the models as the first stage needs them, once it is known that the run can go on where it should.

    Raises:
        ValueError: something in the recipe, the data or the checkpoint does not fit; nothing is written then.
    """
    accelerator = join_processes(
        mixed_precision=recipe.mixed_precision,
        log_with=cast(Any, tracker_names(options.report_to)),
        project_config=ProjectConfiguration(
            str(options.output_dir), logging_dir=str(options.output_dir / options.logging_dir)
        ),
    )
    check_supported(accelerator)
    start = open_output(recipe, options, accelerator)
    recipe = recipe if start is None else start.resumption.recipe
    if accelerator.is_main_process:
        options = prepare_repository(options)
    if options.allow_tf32:
        torch.backends.cuda.matmul.allow_tf32 = True
    vae = open_vae(recipe, options.cache_dir)
    # These draw and encode with models of their own, which have left the memory when the run's come.
    prepare_class_pictures(recipe, accelerator, options.seed, options.cache_dir)
    write_own_embeddings(recipe, options, accelerator)
    set_seed(options.seed)
    run = (
        start_from_pipeline(recipe, options, accelerator)
        if recipe.pretrained
        else start_anew(recipe, options, accelerator)
    )
    run.vae, run.shift_power = vae, run.scheduler.config["shift_power"]
    check_clipping(recipe, run.scheduler)
    check_text_width(recipe, run.text_encoder)
    check_prompts(run)
    if recipe.lora is not None:
        check_lora_levels(recipe, run.unet)
        add_lora(run.unet, recipe.lora)
    if accelerator.is_main_process:
        run.history = History(options.output_dir / FILE_NAME)
    run.start = start
    return run


def open_output(recipe: Recipe, options: RunOptions, accelerator: Accelerator) -> Start | None:
    """Put right what an earlier run left unfinished in the output folder, and find where this one goes on from.

    Raises:
        ValueError: it cannot go on with this recipe.
    """
    if accelerator.is_main_process:
        finish_interrupted(options.output_dir)
        finish_moving(options.output_dir)
    wait_for_everyone(accelerator)
    return find_start(recipe, options.output_dir, options.resume_from_checkpoint, options.seed)


def check_growth(recipe: Recipe, unet: NestedUNetModel) -> None:
    """Refuse to start from a model that cannot become that of a stage, before anything is trained.

    Raises:
        ValueError: says how the two differ.
    """
    for stage in recipe.stages:
        rows = stage_rows(recipe, stage)[: unet.num_levels]
        if unet.level_frames[: len(rows)] == tuple(row.num_frames for row in rows):
            continue
        check_frames_can_become(unet, rows)
        if recipe.lora is not None:
            raise ValueError(
                "LoRA adapts clips that have learnt, but the pipeline draws pictures: make it one of clips without "
                "LoRA (--rank) first."
            )
        return  # later stages grow out of this one


def check_lora_levels(recipe: Recipe, unet: NestedUNetModel) -> None:
    """Refuse LoRA on levels that the pipeline does not have.

    Raises:
        ValueError: says how many levels there are.
    """
    levels = recipe.stages[0].levels
    if levels > unet.num_levels:
        raise ValueError(
            f"LoRA adapts levels that have learnt: the stages train {levels}, but the pipeline has {unet.num_levels}; "
            "train so many, or grow the model without LoRA first."
        )


def start_anew(recipe: Recipe, options: RunOptions, accelerator: Accelerator) -> Run:
    """A run whose U-Net starts from random weights, and its text encoder too or from a saved one."""
    text_encoder, tokenizer = open_text_encoder(recipe)
    unet = build_unet(recipe, recipe.stages[0].levels, recipe.stages[0].as_pictures)
    # Latents reach beyond [-1, 1].
    clipping = {} if recipe.vae is None else {"clip_sample": False}
    scheduler = MatryoshkaScheduler(**{"base_sample_size": recipe.sample_size, **clipping, **recipe.scheduler})
    names = find_class_names(recipe)
    return Run(recipe, options, accelerator, unet, text_encoder, tokenizer, scheduler, id2label=names)


def start_from_pipeline(recipe: Recipe, options: RunOptions, accelerator: Accelerator) -> Run:
    """A run whose modules start as those of a saved pipeline, with the inner levels that the first stage trains.

    A pipeline of pictures whose levels have frames in the recipe gets them when the first stage of clips begins.
    """
    assert recipe.pretrained is not None
    source, encoder = recipe.pretrained, recipe.text_encoder
    own_encoder = encoder is not None and encoder.from_pipeline and not uses_embeddings(recipe)
    pipeline: Any = pipeline_class(recipe).from_pretrained(
        source.path,
        revision=source.revision,
        variant=source.variant,
        cache_dir=options.cache_dir,
        dtype=torch.float32,
        vae=None,
        **({} if own_encoder else {"text_encoder": None}),
    )
    unet: NestedUNetModel = pipeline.unet
    check_classes(recipe, unet)
    if recipe.stages[0].levels < unet.num_levels:
        unet = unet.inner_model(recipe.stages[0].levels)
    check_growth(recipe, unet)
    text_encoder, tokenizer = (pipeline.text_encoder, pipeline.tokenizer) if own_encoder else open_text_encoder(recipe)
    scheduler = MatryoshkaScheduler.from_config(pipeline.scheduler.config, **recipe.scheduler)
    run = Run(recipe, options, accelerator, unet, text_encoder, tokenizer, scheduler)
    run.drawing_defaults = pipeline.config.get("drawing_defaults")
    if num_class_embeds(recipe) is not None:
        run.id2label = keep_class_names(pipeline.id2label, find_class_names(recipe))
    return run


def check_classes(recipe: Recipe, unet: NestedUNetModel) -> None:
    """Refuse a recipe with other classes than the pipeline that it starts from.

    Raises:
        ValueError: says how many class embeddings the two have.
    """
    expected, found = num_class_embeds(recipe), unet.config["num_class_embeds"]
    if expected != found:
        raise ValueError(
            f"`model.num_class_embeds` of the recipe is {expected}, but the pipeline that it starts from has {found}; "
            "write that number into the recipe, or start from another pipeline."
        )


def uses_embeddings(recipe: Recipe) -> bool:
    """Whether captions come encoded, so that no text encoder is kept in memory."""
    return recipe.data.embeddings_dir is not None


def open_text_encoder(recipe: Recipe) -> tuple[PreTrainedModel | None, PreTrainedTokenizerBase | None]:
    """The text encoder and tokenizer that the recipe names or describes; None where none is needed."""
    if uses_embeddings(recipe) or recipe.text_encoder is None:
        return None, None
    return build_text_encoder(recipe.text_encoder, all_training_captions(recipe))


def build_unet(recipe: Recipe, num_levels: int, as_pictures: bool = False) -> NestedUNetModel:
    """A new model with the inner `num_levels` levels of the recipe; `zero_init` silences its branches and output.

    Args:
        recipe: whose rows these are.
        num_levels: how many.
        as_pictures: levels as they are before they have frames.
    """
    rows = inner_rows(recipe, num_levels, as_pictures)
    unet = NestedUNetModel(**recipe.model, **LevelConfig.columns_from(rows))
    if recipe.zero_init:
        unet.zero_init_()
    return unet


def resume_run(run: Run) -> None:
    """Load the checkpoint that the run goes on from, if there is one, and make the output folder ready for it."""
    start, output_dir = run.start, run.options.output_dir
    if start is not None:
        load_checkpoint(run, start.checkpoint, start.report)
        progress = run.progress
        logger.info("Resuming %s at step %d of stage %d.", start.checkpoint, progress.stage_step, progress.stage_index)
        for line in start.resumption.lines():
            logger.info(line)
    wait_for_everyone(run.accelerator)
    if run.accelerator.is_main_process:
        output_dir.mkdir(parents=True, exist_ok=True)
        set_aside_newer(output_dir, run.progress.total_steps, None if start is None else start.checkpoint)
        write_recipe(run.recipe, output_dir)
    if run.history is not None and start is None:
        run.history.cut_after(0)
    start_trackers(run.accelerator, run.options.tracker_project_name, run.recipe, run.progress.total_steps)


def keep_checkpoint(run: Run, needed: bool) -> None:
    """Save a checkpoint. One that cannot be written, and is not `needed`, is reported, and training goes on.

    Raises:
        OSError, SafetensorError: if it is needed and cannot be written; older ones are untouched.
    """
    try:
        logger.info("Saved %s.", save_checkpoint(run))
    except WRITE_ERRORS as error:
        if needed:
            raise
        logger.error("No checkpoint at step %d, training goes on: %s", run.progress.total_steps, error)
    wait_for_everyone(run.accelerator)


def draw_validation(run: Run) -> None:
    """Draw the validation prompts on the main process."""
    draw_validation_grid(run)
    wait_for_everyone(run.accelerator)


def save_pipeline(run: Run) -> Path:
    """Save the pipeline with averaged weights in `save_dtype`, or the adapter's weights; the run ends with this.

    The run's modules keep the averaged and rounded weights; its last checkpoint has the exact ones.

    Raises:
        OSError: if it cannot be written; what was there before is untouched.
    """
    output_dir = run.options.output_dir
    if run.accelerator.is_main_process:
        for name, average in run.ema.items():
            average.copy_to(run.averaged_parameters(name))
        try:
            with finished_files(output_dir) as folder:
                save_modules_in(run, folder)
        except WRITE_ERRORS as error:
            raise OSError(
                f"The finished pipeline could not be written to {output_dir}: {error} The last checkpoint is sound; "
                f"when there is room, finish with {run.options.resume_command}"
            ) from error
        logger.info("Saved to %s.", output_dir)
    wait_for_everyone(run.accelerator)
    return output_dir


def save_modules_in(run: Run, folder: Path) -> None:
    """Write the adapter's weights, or the pipeline of the run's modules, which lose their exact weights."""
    if run.recipe.lora is not None:
        save_lora(run.unet, folder)
        return
    complete_text(run)
    # As it was saved: the run's may have been rounded.
    run.vae = open_vae(run.recipe, run.options.cache_dir)
    for module in (run.text_encoder, run.unet, run.vae):
        if module is not None:
            forget_origin(module)
            # The `to` of diffusers warns about dtypes that it would keep.
            torch.nn.Module.to(module.eval(), dtype=DTYPES[run.options.save_dtype])
    run.pipeline().save_pretrained(folder)


def report_result(run: Run) -> None:
    """Write the card, close the trackers and upload the result; what fails is reported and costs nothing else."""
    ends: dict[str, Callable[[], object]] = {"close the trackers": run.accelerator.end_training}
    if run.accelerator.is_main_process:
        ends = {"write the model card": lambda: write_model_card(run), **ends, "upload it": lambda: push_output(run)}
    for what, do in ends.items():
        try:
            do()
        except Exception:
            logger.exception("The result is saved in %s, but it failed to %s.", run.options.output_dir, what)


def complete_text(run: Run) -> None:
    """Give a run that trained on encoded captions its text encoder, which a pipeline needs to draw from prompts."""
    if run.text_encoder is None and run.recipe.text_encoder is not None:
        _, run.text_encoder, run.tokenizer = frozen_text_encoder(run.recipe, run.options.cache_dir)
