# SPDX-License-Identifier: Apache-2.0
"""The start of a run: its modules, new or from a saved pipeline, and the checkpoint to resume from."""

import logging
from collections.abc import Mapping
from typing import Any, cast

import torch
from accelerate import Accelerator
from accelerate.utils import DistributedType, ProjectConfiguration, set_seed
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from ...models.level import Level
from ...models.level_config import LevelConfig
from ...models.nested_unet import NestedUNetModel
from ...pipelines.drawing.request import BUCKETS
from ...processes import join_processes, wait_for_everyone
from ...schedulers.predictions import level_predictions
from ...schedulers.scheduling_matryoshka import MatryoshkaScheduler
from ..data.class_names import find_class_names
from ..data.subjects import prepare_class_images
from ..modules.autoencoder import check_clipping, open_vae
from ..modules.classes import is_unconditional, keep_class_names, num_class_embeds, pipeline_class, sees_text
from ..modules.growth import check_frames_can_become
from ..modules.lora import add_lora
from ..modules.text_encoder import build_text_encoder, check_text_width
from ..optimizers.registry import check_optimizer
from ..precision import check_precision
from ..recipe.clip_stages import inner_level_configs, stage_level_configs
from ..recipe.recipe import Recipe
from ..recipe.writing import write_recipe
from ..reports.hub import prepare_repository
from ..reports.trackers import start_trackers, tracker_names
from ..reports.validation_grid import check_prompts
from ..state.checkpoint_folders import set_aside_newer
from ..state.checkpoints import load_checkpoint
from ..state.complete_folders import finish_interrupted
from ..state.finished_files import finish_moving
from ..state.history import FILE_NAME, History
from ..state.post_hoc.snapshots import FOLDER, set_aside_newer_snapshots
from ..state.resuming import Start, find_start
from ..state.run import Run, RunOptions
from ..state.sharding import check_supported
from .stage_data import all_training_captions
from .text_features import write_own_embeddings
from .validation_metrics import check_validation_metrics

logger = logging.getLogger(__name__)


def start_run(recipe: Recipe, options: RunOptions) -> Run:
    """Create or load the models for the first stage, after checking that the run can resume as requested.

    Raises:
        ValueError: something in the recipe, the data or the checkpoint is wrong; nothing has been written then.
    """
    check_precision(recipe.mixed_precision, is_asked_for=options.mixed_precision is not None)
    accelerator = join_processes(
        mixed_precision=recipe.mixed_precision,
        log_with=cast(Any, tracker_names(options.report_to)),
        project_config=ProjectConfiguration(
            str(options.output_dir), logging_dir=str(options.output_dir / options.logging_dir)
        ),
    )
    check_supported(accelerator, recipe.level_configs)
    check_optimizer(recipe.optimizer, accelerator.distributed_type == DistributedType.FSDP)
    start = open_output(recipe, options, accelerator)
    recipe = recipe if start is None else start.resumption.recipe
    if accelerator.is_main_process:
        options = prepare_repository(options)
    if options.allow_tf32:
        torch.backends.cuda.matmul.allow_tf32 = True
    vae = open_vae(recipe, options.cache_dir)
    # These use models of their own, which have been freed before those of the run are loaded.
    prepare_class_images(recipe, accelerator, options.seed, options.cache_dir)
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
    check_validation_metrics(run)
    if recipe.extra_losses:
        add_extra_losses(run)
    if recipe.lora is not None:
        check_lora_levels(recipe, run.unet)
        add_lora(run.unet, recipe.lora)
    if accelerator.is_main_process:
        run.history = History(options.output_dir / FILE_NAME)
    run.start = start
    return run


def add_extra_losses(run: Run) -> None:
    """Open the recipe's extra losses.

    Raises:
        ValueError: a network cannot be loaded, or FSDP would have to shard layers of a loss.
    """
    from ..extra_losses.registry import open_extra_losses  # most runs have none

    run.extra_losses = open_extra_losses(run.recipe, run.accelerator.device, run.options.seed)
    if run.is_sharded and run.extra_modules:
        raise ValueError(
            f"`{next(iter(run.extra_modules))}` trains layers of its own, which are not sharded: train without FSDP, "
            "as in `accelerate launch --multi_gpu`, or omit it."
        )


def open_output(recipe: Recipe, options: RunOptions, accelerator: Accelerator) -> Start | None:
    """Clean up what an earlier run left unfinished in the output folder, and find the checkpoint to resume from.

    Raises:
        ValueError: the run cannot be resumed with this recipe.
    """
    if accelerator.is_main_process:
        finish_interrupted(options.output_dir)
        finish_interrupted(options.output_dir / FOLDER)
        finish_moving(options.output_dir)
    wait_for_everyone(accelerator)
    return find_start(recipe, options.output_dir, options.resume_from_checkpoint, options.seed)


def start_anew(recipe: Recipe, options: RunOptions, accelerator: Accelerator) -> Run:
    """Create a run whose U-Net starts from random weights; its text encoder is new or a saved one."""
    text_encoder, tokenizer = open_text_encoder(recipe)
    unet = build_unet(recipe, recipe.stages[0].levels, recipe.stages[0].as_images)
    # Latents are not confined to [-1, 1].
    clipping = {} if recipe.vae is None else {"clip_sample": False}
    scheduler = MatryoshkaScheduler(**{"base_sample_size": recipe.sample_size, **clipping, **recipe.scheduler})
    names = find_class_names(recipe)
    return Run(recipe, options, accelerator, unet, text_encoder, tokenizer, scheduler, id2label=names)


def start_from_pipeline(recipe: Recipe, options: RunOptions, accelerator: Accelerator) -> Run:
    """Create a run that starts from the modules of a saved pipeline, with the inner levels of the first stage.

    If the levels of an image pipeline have frames in the recipe, these are added when the first stage on clips begins.
    """
    assert recipe.pretrained is not None
    source, encoder = recipe.pretrained, recipe.text_encoder
    own_encoder = encoder is not None and encoder.from_pipeline and not uses_embeddings(recipe)
    without_encoder = {} if own_encoder or is_unconditional(recipe) else {"text_encoder": None}
    pipeline: Any = pipeline_class(recipe).from_pretrained(
        source.path,
        revision=source.revision,
        variant=source.variant,
        cache_dir=options.cache_dir,
        dtype=torch.float32,
        vae=None,
        **without_encoder,
    )
    unet: NestedUNetModel = pipeline.unet
    check_conditions(recipe, unet)
    if recipe.stages[0].levels < unet.num_levels:
        unet = unet.inner_model(recipe.stages[0].levels)
    check_growth(recipe, unet)
    text_encoder, tokenizer = (pipeline.text_encoder, pipeline.tokenizer) if own_encoder else open_text_encoder(recipe)
    scheduler = MatryoshkaScheduler.from_config(pipeline.scheduler.config, **recipe.scheduler)
    renew_outputs(recipe, unet, pipeline.scheduler.config, scheduler.config)
    run = Run(recipe, options, accelerator, unet, text_encoder, tokenizer, scheduler)
    run.drawing_defaults = dict(pipeline.config.get("drawing_defaults") or {}) or None
    if run.drawing_defaults is not None and recipe.stages[-1].levels != pipeline.unet.num_levels:
        run.drawing_defaults.pop(BUCKETS, None)  # sizes of another level
    if num_class_embeds(recipe) is not None:
        run.id2label = keep_class_names(pipeline.id2label, find_class_names(recipe))
    return run


def renew_outputs(recipe: Recipe, unet: NestedUNetModel, before: Mapping[str, Any], after: Mapping[str, Any]) -> None:
    """Set the last layer of every level to zero if the level is to predict something else than it was trained for.

    All other layers are kept: features of images are useful for any kind of prediction.

    Args:
        recipe: the recipe of the run.
        unet: its model, which is changed.
        before: config of the scheduler with which the model was trained.
        after: config of the run's scheduler.

    Raises:
        ValueError: the run trains only LoRA layers, which cannot replace a last layer.
    """
    kinds = [level_predictions(config["prediction_type"], unet.num_levels) for config in (before, after)]
    changed = [level for level, (old, new) in enumerate(zip(*kinds, strict=True)) if old != new]
    if changed and recipe.lora is not None:
        raise ValueError(
            f"`scheduler.prediction_type` makes level {changed[0]} predict {kinds[1][changed[0]]!r}, but the pipeline "
            f"was trained to predict {kinds[0][changed[0]]!r} there. LoRA cannot learn that: omit `prediction_type` "
            "(--prediction_type), or train without LoRA (--rank)."
        )
    for level in changed:
        output = cast(Level, unet.levels[level]).decoder.conv_out
        torch.nn.init.zeros_(output.weight)
        torch.nn.init.zeros_(cast(torch.Tensor, output.bias))
        logger.info(
            "Level %d learns to predict %s in place of %s; its last layer begins anew.",
            level,
            kinds[1][level],
            kinds[0][level],
        )


def build_unet(recipe: Recipe, num_levels: int, as_images: bool = False) -> NestedUNetModel:
    """Create a model with the inner `num_levels` levels of the recipe; `zero_init` zeroes its residual branches and
    output.

    Args:
        recipe: the recipe.
        num_levels: number of levels.
        as_images: build the levels as they are before frames are added.
    """
    level_configs = inner_level_configs(recipe, num_levels, as_images)
    unet = NestedUNetModel(**recipe.model, **LevelConfig.columns_from(level_configs))
    if recipe.zero_init:
        unet.zero_init_()
    return unet


def open_text_encoder(recipe: Recipe) -> tuple[PreTrainedModel | None, PreTrainedTokenizerBase | None]:
    """Create or load the recipe's text encoder and tokenizer; None if none is needed."""
    if uses_embeddings(recipe) or recipe.text_encoder is None:
        return None, None
    return build_text_encoder(recipe.text_encoder, all_training_captions(recipe))


def uses_embeddings(recipe: Recipe) -> bool:
    """Return whether captions are precomputed, so that no text encoder is kept in memory."""
    return recipe.data.embeddings_dir is not None


def check_conditions(recipe: Recipe, unet: NestedUNetModel) -> None:
    """Check that the model of a recipe takes text if that of the pipeline that it starts from does, and has as many
    classes.

    Raises:
        ValueError: says how the two differ.
    """
    takes_text = unet.config["cross_attention_dim"] is not None
    if sees_text(recipe) != takes_text:
        raise ValueError(
            f"The pipeline that the recipe starts from takes {'text' if takes_text else 'no text'}, but the model of "
            f"the recipe {'does not' if takes_text else 'does'} (`model.cross_attention_dim`); start from another "
            "pipeline, or change the recipe."
        )
    expected, found = num_class_embeds(recipe), unet.config["num_class_embeds"]
    if expected != found:
        raise ValueError(
            f"`model.num_class_embeds` of the recipe is {expected}, but the pipeline that it starts from has {found}; "
            "use that number in the recipe, or start from another pipeline."
        )


def check_growth(recipe: Recipe, unet: NestedUNetModel) -> None:
    """Check, before training, that the pipeline's model can be extended to that of each stage.

    Raises:
        ValueError: says how the two differ.
    """
    for stage in recipe.stages:
        level_configs = stage_level_configs(recipe, stage)[: unet.num_levels]
        if unet.level_frames[: len(level_configs)] == tuple(level.num_frames for level in level_configs):
            continue
        check_frames_can_become(unet, level_configs)
        if recipe.lora is not None:
            raise ValueError(
                "LoRA adapts a trained video model, but this is an image pipeline: turn it into a video pipeline "
                "without LoRA (--rank) first."
            )
        return  # later stages extend this one


def check_lora_levels(recipe: Recipe, unet: NestedUNetModel) -> None:
    """Check that the pipeline has all levels to which LoRA is applied.

    Raises:
        ValueError: says how many levels there are.
    """
    levels = recipe.stages[0].levels
    if levels > unet.num_levels:
        raise ValueError(
            f"LoRA adapts trained levels: the stages train {levels}, but the pipeline has {unet.num_levels}; train "
            f"that many, or add levels without LoRA first."
        )


def resume_run(run: Run) -> None:
    """Load the checkpoint to resume from, if there is one, and prepare the output folder."""
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
        set_aside_newer_snapshots(output_dir, run.progress.total_steps)
        write_recipe(run.recipe, output_dir)
    if run.history is not None and start is None:
        run.history.cut_after(0)
    start_trackers(run.accelerator, run.options.tracker_project_name, run.recipe, run.progress.total_steps)
