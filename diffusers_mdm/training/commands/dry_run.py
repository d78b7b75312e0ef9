# SPDX-License-Identifier: Apache-2.0
"""The description of a run for `--dry_run`. No weights are created: parameters are counted on the meta device."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import fields
from pathlib import Path

import torch

from ..costs.compute_estimate import Gpu, describe_stage_compute, estimate_stage_compute
from ..costs.memory_estimate import (
    Activations,
    StageMemory,
    count,
    estimate_stage,
    fake_unet,
    freeze,
    peak_activations,
    stage_activations,
)
from ..data.sources import open_source
from ..modules.autoencoder import count_vae_parameters, scale_factor_of, source_of
from ..modules.classes import num_class_embeds, sees_text
from ..modules.text_encoder import count_text_parameters
from ..precision import EMULATION, emulates_bf16
from ..recipe.buckets import level_buckets
from ..recipe.clip_stages import data_of, has_clips, joint_stage, sources, stage_frames
from ..recipe.data import DataRecipe
from ..recipe.recipe import Recipe
from ..recipe.stage import StageRecipe
from ..reports.described_settings import (
    describe_extra_losses,
    describe_metrics,
    describe_optimizer,
    describe_plateau,
    describe_post_hoc,
    describe_prediction,
    describe_weighting,
    join_words,
    weighting_settings,
)
from ..state.run import RunOptions

GIB = 2**30
GPU = Gpu()
SHARE_OF_DEVICE = 0.8  # what kernels and the allocator leave of its memory


def describe_run(recipe: Recipe, options: RunOptions | None = None, num_processes: int = 1) -> str:
    """Describe what would be trained: levels and parameters, and the length, batch and memory of every stage.

    Args:
        recipe: the recipe, with the changes made by flags.
        options: how it is run, which affects the memory.
        num_processes: number of processes that share a step.
    """
    options = options or RunOptions(output_dir=Path(recipe.name))
    num_text_parameters, num_vae_parameters = count_text_parameters(recipe), count_vae_parameters(recipe)
    factor = None if num_vae_parameters is None else scale_factor_of(recipe, local_files_only=True)
    lines = [
        f"{recipe.name}: {len(recipe.levels)} level(s), data {_data(recipe)}",
        *(f"  data: {line}" for data in sources(recipe) for line in open_source(data).describe()),
        *_describe_models(recipe, num_text_parameters, factor),
        *_describe_vae(recipe, num_vae_parameters),
        *_describe_buckets(recipe, factor),
        *_describe_settings(recipe, options),
    ]
    for stage in recipe.stages:
        lines += _describe_stage(recipe, stage, num_processes, factor)
        passes = stage_activations(recipe, stage, options)
        memory = estimate_stage(recipe, stage, options, num_text_parameters, num_vae_parameters, passes)
        lines.append(f"    memory a process: {_describe_memory(memory)}")
        lines += describe_checkpointing(checkpointing_choices(memory, passes, stage.levels), device_memory())
        compute = estimate_stage_compute(recipe, stage, num_processes)
        lines.append(f"    compute: {describe_stage_compute(compute, GPU, num_processes)}")
    lines.append(
        "  memory: weights, gradients, optimizer and averages from numbers of parameters, activations from a "
        "simulated forward pass; kernels and the allocator need more."
    )
    lines.append(
        f"  compute: GPUs of {GPU.tflops:g} TFLOP/s, of which {GPU.utilisation:g} is used; `diffusers-mdm estimate` "
        "takes other values."
    )
    if (options.mixed_precision or recipe.mixed_precision) == "bf16" and emulates_bf16():
        lines.append(f"  precision: bf16. {EMULATION}")
    return "\n".join(lines)


def _data(recipe: Recipe) -> str:
    return " and images ".join(_source(data) for data in sources(recipe))


def _source(data: DataRecipe) -> str:
    return ", ".join(data.origin().names)


def _describe_models(recipe: Recipe, num_text_parameters: int | None, factor: int | None) -> Iterable[str]:
    if recipe.pretrained is not None:
        yield f"  starts from {recipe.pretrained.path}"
    unet = fake_unet(recipe, len(recipe.levels))
    plain = {name: value for name, value in unet.named_parameters() if ".lora_" not in name}
    total = sum(value.numel() for name, value in plain.items() if not name.startswith("levels."))
    yield f"  shared by the levels (text, classes): {total:,} parameters"
    for position in range(len(recipe.levels)):
        own = sum(value.numel() for name, value in plain.items() if name.startswith(f"levels.{position}."))
        total += own
        side = _describe_side(recipe, position, factor)
        yield f"  level {position}: {side}, {own:,} parameters; U-Net up to it: {total:,}"
    if recipe.lora is not None:
        yield f"  LoRA of rank {recipe.lora.rank}: {count(unet, trained_only=True):,} parameters"
    if num_text_parameters is None:
        encoder, source = recipe.text_encoder, recipe.pretrained
        where = (encoder and encoder.pretrained) or (source and source.path)
        yield f"  text encoder of {where}: not on this machine, not counted"
    elif num_text_parameters:
        verb = "trained" if recipe.trains_text_encoder else "frozen"
        yield f"  text encoder: {num_text_parameters:,} parameters, {verb}"
    else:
        yield "  text encoder: none in memory"


def _describe_side(recipe: Recipe, level: int, factor: int | None) -> str:
    """Describe the side of a level in pixels and, for latents, in latents; `factor` is None if the autoencoder is
    unknown.
    """
    side = recipe.sides[level]
    if recipe.vae is None:
        return f"{side} pixels"
    return f"{side} latents" if factor is None else f"{side * factor} pixels ({side} latents)"


def _describe_buckets(recipe: Recipe, factor: int | None) -> Iterable[str]:
    """Describe the sizes of the images, which for latents depend on the autoencoder."""
    if not recipe.data.has_buckets:
        return
    if factor is None:
        yield "  aspect-ratio buckets: known with the autoencoder"
        return
    sizes = level_buckets(recipe, recipe.stages[-1].levels, factor)
    yield f"  aspect-ratio buckets (height x width): {', '.join(f'{high} x {wide}' for high, wide in sizes)}"


def _describe_settings(recipe: Recipe, options: RunOptions) -> Iterable[str]:
    """Describe what is the same in all stages."""
    conditions = {"captions": sees_text(recipe), "classes": num_class_embeds(recipe) is not None}
    taken = [name for name, is_taken in conditions.items() if is_taken]
    yield f"  conditions: {join_words(taken) if taken else 'none, an unconditional model'}"
    yield f"  prediction: {describe_prediction(recipe.scheduler)}"
    yield f"  optimizer: {describe_optimizer(recipe.optimizer)}"
    averages = ["EMA, with which the pipeline is saved"] if recipe.use_ema else []
    averages += [] if recipe.post_hoc_ema is None else [describe_post_hoc(recipe.post_hoc_ema)]
    yield f"  averages of the weights: {'; '.join(averages) or 'none'}"
    metrics, every = describe_metrics(recipe), options.validation_steps or options.checkpointing_steps
    if metrics is not None:
        yield f"  validation metrics: {metrics}, every {every:,} steps"


def _describe_vae(recipe: Recipe, num_parameters: int | None) -> Iterable[str]:
    if recipe.vae is None:
        return
    path = source_of(recipe.vae, recipe.pretrained)["path"]
    known = "not on this machine, not counted" if num_parameters is None else f"{num_parameters:,} parameters, frozen"
    yield f"  autoencoder of {path}: {known}"


def _describe_stage(recipe: Recipe, stage: StageRecipe, num_processes: int, factor: int | None) -> Iterable[str]:
    unet = fake_unet(recipe, stage.levels, stage.as_images)
    freeze(unet, recipe, stage)
    side = _describe_side(recipe, stage.levels - 1, factor)
    per_step = stage.images_per_step * num_processes
    yield (
        f"  stage {stage.name}: levels 0-{stage.levels - 1}, {side}{_describe_kind(recipe, stage)}, "
        f"{_describe_end(stage, num_processes)}, "
        f"batch per level {list(stage.samples_per_level)}, weights {list(stage.weights)}, "
        f"lr {stage.learning_rate:g} {stage.lr_scheduler}, {count(unet, trained_only=True):,} parameters of the "
        f"U-Net trained"
    )
    yield (
        f"    a step: {per_step} images = {num_processes} process(es) x {stage.gradient_accumulation_steps} "
        f"accumulated x {stage.batch_size}"
    )
    yield f"    loss: {describe_weighting(weighting_settings(stage))}"
    for loss in describe_extra_losses(recipe, stage):
        yield f"    added loss: {loss}; its network is not counted in the memory"
    images = joint_stage(recipe, stage)
    if images is not None:
        reach = "all levels" if images.levels == stage.levels else f"levels 0-{images.levels - 1}"
        yield (
            f"    together with {images.images_per_step * num_processes} images through {reach}, from "
            f"{_source(data_of(recipe, images))}"
        )


def _describe_kind(recipe: Recipe, stage: StageRecipe) -> str:
    if not has_clips(recipe):
        return ""
    frames = stage_frames(recipe, stage)
    return f", clips of {frames} frames" if frames > 1 else ", images"


def _describe_end(stage: StageRecipe, num_processes: int) -> str:
    """Describe when the stage ends, such as "4 steps x 8 = 32 images"."""
    per_step = stage.images_per_step * num_processes
    steps = stage.max_steps(num_processes)
    plateau = stage.until_plateau
    until = [] if steps is None else [f"{steps:,} steps x {per_step} = {steps * per_step:,} images"]
    if plateau is not None:
        until.append(describe_plateau(plateau))
    return " or ".join(until)


def _describe_memory(memory: StageMemory) -> str:
    parts = [(field.name.replace("_", " "), getattr(memory, field.name)) for field in fields(memory)]
    parts = [(name, value) for name, value in parts if name != "autoencoder" or value != 0]
    spelled = " + ".join(f"{name} {'unknown' if value is None else f'{value / GIB:.2f}'}" for name, value in parts)
    return f"{memory.total / GIB:.2f} GiB = {spelled}"


def checkpointing_choices(
    memory: StageMemory, passes: Sequence[Activations], num_levels: int
) -> dict[tuple[int, ...], int]:
    """Return the total memory of a stage in bytes for different levels with gradient checkpointing.

    They are added from the outermost level inwards, because outer levels have the largest activations and the least
    to recompute.

    Args:
        memory: estimate with any levels.
        passes: result of `stage_activations`.
        num_levels: number of levels of the stage.
    """
    rest = memory.total - memory.activations
    choices = [tuple(range(first, num_levels)) for first in range(num_levels, -1, -1)]
    return {levels: rest + peak_activations(passes, levels) for levels in choices}


def device_memory() -> int | None:
    """Return the memory of the GPU in bytes; None without one."""
    return torch.cuda.get_device_properties(0).total_memory if torch.cuda.is_available() else None


def describe_checkpointing(choices: Mapping[tuple[int, ...], int], available: int | None) -> Iterable[str]:
    """Describe what gradient checkpointing saves, and if the memory of the device is known, how much of it is needed.

    Args:
        choices: total bytes by checkpointed levels, from none to all of them.
        available: bytes of the device.
    """
    spelled = [f"{','.join(map(str, levels)) or 'none'}: {total / GIB:.2f} GiB" for levels, total in choices.items()]
    yield f"    total by --gradient_checkpointing_levels: {'; '.join(spelled)}"
    if available is None:
        return
    fitting = [levels for levels, total in choices.items() if total <= SHARE_OF_DEVICE * available]
    device = f"    this GPU has {available / GIB:.0f} GiB, of which {SHARE_OF_DEVICE:.0%} can be planned:"
    if not fitting:
        yield f"{device} too little even with gradient checkpointing of all levels; lower the batch size"
    elif not fitting[0]:
        yield f"{device} enough without gradient checkpointing"
    else:
        yield f"{device} take --gradient_checkpointing_levels {','.join(map(str, fitting[0]))}"
