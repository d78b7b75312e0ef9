# SPDX-License-Identifier: Apache-2.0
"""One optimizer step: add noise to a batch, predict, compute the loss, and update the weights.

All random numbers of an image or clip depend only on the seed of the run, the stage and the position in the stream. So
a step does not depend on how its batch is divided among processes and micro-batches, nor on resuming.
"""

import contextlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple, cast

import torch
from torch.distributed.tensor import DTensor
from transformers import PreTrainedModel

from ...models.level_config import NOISE_LEVEL
from ...pipelines.drawing.conditioning import encode_tokens
from ...pipelines.drawing.latent_space import encode_images
from ...pyramid import Pyramid, build_pyramid
from ..data.batch import Batch, replace_by_empty, to_unit_range
from ..loss.draws import sample_draws, sample_timesteps
from ..loss.pyramid_loss import (
    PyramidLoss,
    loss_table,
    pyramid_loss,
    ramped_level_weights,
    sigmoid_factors,
    thin_batches,
)
from ..modules.classes import check_class_labels
from ..modules.small_images import noisy_small_images, shapes_of_draws
from ..recipe.clip_stages import data_of, joint_stage
from ..recipe.stage import StageRecipe
from ..recipe.text_encoder import TextEncoderRecipe
from ..state.averages import update_averages
from ..state.optimizer import learning_rate_factor
from ..state.run import Run


@dataclass(frozen=True)
class StepPlan:
    """Settings that are the same for all steps of a stage.

    Attributes:
        stage: the stage.
        random_flip: flip images or clips with probability 1/2.
        num_old_levels: number of inner levels that were trained before this stage.
        joint_images: the plan for the stage's `joint_images`; None without.
    """

    stage: StageRecipe
    random_flip: bool
    num_old_levels: int
    joint_images: "StepPlan | None" = None


def plan_steps(run: Run, stage: StageRecipe) -> StepPlan:
    """Create the plan for the steps of a stage."""
    index = run.progress.stage_index
    num_old_levels = run.recipe.stages[index - 1].levels if index else 0
    beside = joint_stage(run.recipe, stage)
    return StepPlan(
        stage,
        data_of(run.recipe, stage).random_flip,
        num_old_levels,
        None if beside is None else StepPlan(beside, data_of(run.recipe, beside).random_flip, num_old_levels),
    )


@dataclass(frozen=True)
class NoisyBatch:
    """A batch with its noise.

    Attributes:
        clean: levels (B_i, C, H_i, W_i), for clips (B_i, C, F_i, H_i, W_i), in [-1, 1] or of latents, innermost first.
        noise: noise in the same shapes.
        timesteps: (B_0,).
        batch: the batch, with captions dropped and pixels flipped.
        beside: (B, c, H, W), further input channels, for super-resolution; None without.
    """

    clean: Pyramid
    noise: Pyramid
    timesteps: torch.Tensor
    batch: Batch
    beside: torch.Tensor | None = None


def noise_batch(run: Run, plan: StepPlan, batch: Batch) -> NoisyBatch:
    """Sample flips, dropped captions, t and noise for a batch (algorithm 1 of the paper, one t for all levels)."""
    stage, device, num_train_timesteps = plan.stage, run.accelerator.device, len(run.scheduler)
    place = (run.options.seed, stage.seed, run.progress.stage_index)
    draws = sample_draws(place, batch.positions, device)
    chances = draws.chances()
    timesteps = sample_timesteps(stage, num_train_timesteps, draws.timestep_chances(), device)
    classes, null_class = run.unet.config["num_class_embeds"], None
    if classes is not None:
        check_class_labels(batch.class_labels, classes)
        null_class = classes - 1  # as in the pipelines
    dropped = chances[:, 0] < stage.caption_dropout
    batch = replace_by_empty(batch.to(device, non_blocking=True), dropped, null_class)
    if plan.random_flip:
        flips = (
            (chances[:, 1] < 0.5).to(device).view(-1, *[1] * (batch.pixels.ndim - 1))
        )  # the same for all frames of a clip
        batch = replace(batch, pixels=torch.where(flips, batch.pixels.flip(-1), batch.pixels))
    generators = None if run.vae is None else draws.latent_generators()
    clean = thin_batches(clean_pyramid(run, stage, batch.pixels, generators), stage.samples_per_level)
    shapes: list[Sequence[int]] = [level.shape for level in clean]
    if run.recipe.super_resolution is not None:
        more = draws.noise([*shapes, *shapes_of_draws(clean[-1])])
        small = noisy_small_images(clean[-1], more[1:], run.recipe.super_resolution)
        batch = replace(batch, micro_conditioning={**batch.micro_conditioning, NOISE_LEVEL: small.noise_level})
        return NoisyBatch(clean, more[:1], timesteps, batch, small.enlarged)
    noise = draws.noise(shapes, stage.noise_offset)
    return NoisyBatch(clean, noise, timesteps, batch)


@torch.no_grad()
def clean_pyramid(
    run: Run, stage: StageRecipe, pixels: torch.Tensor, generators: Sequence[torch.Generator] | None = None
) -> Pyramid:
    """Return the stage's levels of images, averaged down; with an autoencoder, those of their latents.

    Args:
        run: the run, with the model's sizes and the autoencoder.
        stage: the stage, with the number of levels.
        pixels: uint8 `(B, 3, H, W)`, or clips `(B, 3, F, S, S)`, of the size of the outermost level in pixels.
        generators: one per sample, with which its latents are sampled (from the autoencoder's posterior, as in
            diffusers' scripts); each is used for one number per latent, and not for pixels. Without them the mode is
            taken, for measurements that must be the same each time.

    Returns:
        Levels (B, C, height, width) of one aspect ratio, in [-1, 1] or of about unit variance, innermost first; for
        clips with frames.
    """
    levels = to_unit_range(pixels)
    if run.vae is not None:
        given = None if generators is None else list(generators)
        with run.at_hand(run.vae):
            levels = encode_images(run.vae, levels, sample_posterior=given is not None, generator=given)
    frames = run.unet.level_frames[: stage.levels] if pixels.ndim == 5 else None
    sides = run.unet.sample_sizes[: stage.levels]
    return build_pyramid(levels, [side * levels.shape[-2] // sides[-1] for side in sides], frames)


def predict(
    run: Run, noisy: Pyramid, timesteps: torch.Tensor, batch: Batch, beside: torch.Tensor | None = None
) -> Pyramid:
    """Return the model's output for every level, in float32: what `prediction_type` says that it predicts.

    Args:
        run: the run, within a stage.
        noisy: levels (B_i, C, H_i, W_i), innermost first.
        timesteps: (B_0,).
        batch: the conditions.
        beside: (B, c, H, W), further input channels of a model with one level.
    """
    if run.model is None:
        raise RuntimeError("The model is not prepared; call `begin_stage` first.")
    if beside is not None:
        noisy = [torch.cat([noisy[0], beside], dim=1)]
    noisy = [level.contiguous(memory_format=run.memory_format) if level.ndim == 4 else level for level in noisy]
    captions: list[str] | None = batch.captions
    embeds, mask = batch.prompt_embeds, batch.prompt_attention_mask
    if run.unet.config["cross_attention_dim"] is None:
        captions, embeds, mask = None, None, None
    elif embeds is not None:
        captions = None
    elif not cast(TextEncoderRecipe, run.recipe.text_encoder).train_text_encoder:
        embeds, mask = encode_captions(run, batch.captions)
        captions = None
    predictions = run.model(
        noisy,
        timesteps,
        captions=captions,
        prompt_embeds=embeds,
        prompt_attention_mask=mask,
        class_labels=batch.class_labels,
        added_cond_kwargs=batch.micro_conditioning or None,
    )
    return [prediction.float() for prediction in predictions]


@torch.no_grad()
def encode_captions(run: Run, captions: list[str]) -> tuple[torch.Tensor, torch.Tensor]:
    """Encode captions with the run's frozen encoder: features `(B, L, D)`, zero at padding, and their mask `(B,
    L)`.
    """
    tokens, mask = run.caption_tokens.of(captions)
    with run.at_hand(run.text_encoder), run.accelerator.autocast():
        return encode_tokens(tokens, mask, cast(PreTrainedModel, run.text_encoder), run.accelerator.device)


def own_factors(
    run: Run, stage: StageRecipe, timesteps: torch.Tensor, powers: Sequence[torch.Tensor]
) -> list[torch.Tensor | None] | None:
    """Return the weights of weightings that depend on more than the signal power of a level; None for others."""
    if stage.loss_weighting == "prediction":
        return run.scheduler.own_error_factors(powers)
    if stage.loss_weighting == "sigmoid":
        return sigmoid_factors(run.scheduler.alphas_cumprod, timesteps, powers, stage.sigmoid_bias)
    return None


def compute_loss(run: Run, plan: StepPlan, batch: Batch) -> tuple[PyramidLoss, torch.Tensor]:
    """Return the loss of one micro-batch, and its table by level and quartile of t (see `loss_table`)."""
    stage, scheduler = plan.stage, run.scheduler
    drawn = noise_batch(run, plan, batch)
    noisy = cast(Pyramid, scheduler.add_noise(drawn.clean, drawn.noise, drawn.timesteps))
    velocities = cast(Pyramid, scheduler.get_velocity(drawn.clean, drawn.noise, drawn.timesteps))
    predictions = predict(run, noisy, drawn.timesteps, drawn.batch, drawn.beside)
    powers = scheduler.level_alphas_cumprod(drawn.clean, drawn.timesteps)
    found = scheduler.velocities_of(predictions, drawn.clean, noisy, drawn.timesteps)
    loss = pyramid_loss(
        found,
        velocities,
        powers,
        ramped_level_weights(stage, plan.num_old_levels, run.progress.stage_step),
        stage.loss_weighting,
        stage.snr_gamma,
        drawn.batch.sample_weights,
        own_factors(run, stage, drawn.timesteps, powers),
        stage.p2_gamma,
        stage.p2_k,
    )
    if run.stage_losses:
        loss = with_extra_losses(run, loss, drawn, noisy, found, powers)
    return loss, loss_table(loss.sample_errors, drawn.timesteps, len(scheduler))


def with_extra_losses(
    run: Run,
    loss: PyramidLoss,
    drawn: NoisyBatch,
    noisy: Pyramid,
    velocities: Pyramid,
    powers: Sequence[torch.Tensor],
) -> PyramidLoss:
    """Add the extra losses of the stage to the loss of the pyramid.

    Args:
        run: the run, within the stage.
        loss: the loss of the pyramid.
        drawn: the batch, after the forward pass.
        noisy: its noisy levels.
        velocities: the predictions of the model, converted to v.
        powers: signal power of every sample, element i `(B_i,)`.
    """
    from ..extra_losses.extra_loss import LossInputs  # most runs have none

    predicted = run.scheduler.clean_of_velocities(velocities, noisy, drawn.timesteps)
    inputs = LossInputs(drawn.batch.pixels, drawn.clean, predicted, powers)
    per_sample, extra, sample_weights = loss.per_sample, {}, drawn.batch.sample_weights
    for name, part in run.stage_losses.items():
        errors = part.errors(inputs)
        per_sample = per_sample + part.weight * (
            errors if sample_weights is None else errors * sample_weights.to(errors)
        )
        extra[name] = errors.detach().mean()
    return replace(loss, total=per_sample.mean(), per_sample=per_sample, extra=extra)


class StepTables(NamedTuple):
    """Losses of an optimizer step on this process, by level and quartile of t; see `loss_table`.

    samples: losses of the stage's images or clips.
    joint_images: losses of its `joint_images`; None without.
    extra: mean errors of extra losses by name.
    """

    samples: torch.Tensor
    joint_images: torch.Tensor | None = None
    extra: Mapping[str, torch.Tensor] | None = None


def optimizer_step(
    run: Run, plan: StepPlan, batches: Sequence[Batch], joint_images: Sequence[Batch] = ()
) -> StepTables:
    """Accumulate the gradients of the micro-batches, update the weights, and count the step.

    Args:
        run: the run, within the stage.
        plan: the plan of the stage.
        batches: the micro-batches of the step.
        joint_images: the `joint_images` of each of them. The loss is then the mean over clips and images.

    Raises:
        FloatingPointError: if `max_skipped_steps` consecutive steps had gradients that are not finite.
    """
    process, tables, joint_tables, extra = run.accelerator, [], [], []
    stage = plan.stage
    share = stage.batch_size / (stage.batch_size + stage.joint_images)
    for number, batch in enumerate(batches, start=1):
        if plan.joint_images is not None:
            # First, because gradients are synchronised in a pass that uses all parameters.
            with process.no_sync(run.model):
                loss, table = compute_loss(run, plan.joint_images, joint_images[number - 1])
                process.backward(loss.total * ((1 - share) / len(batches)))
            joint_tables.append(table)
        # Gradients are synchronised once per step, with the last micro-batch.
        is_last = number == len(batches)
        with contextlib.nullcontext() if is_last else process.no_sync(run.model):
            loss, table = compute_loss(run, plan, batch)
            process.backward(loss.total * share / len(batches))
        tables.append(table)
        extra.append(loss.extra)
    update_weights(run, stage)
    means = {name: torch.stack([errors[name] for errors in extra]).mean() for name in extra[0]}
    return StepTables(torch.stack(tables).sum(0), torch.stack(joint_tables).sum(0) if joint_tables else None, means)


def update_weights(run: Run, stage: StageRecipe) -> None:
    """Clip gradients, update weights and averages; a step with gradients that are not finite is skipped and
    counted.
    """
    progress, optimizer, process = run.progress, run.optimizer, run.accelerator
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    if run.is_sharded and run.model is not None:
        # accelerate compares them with those of its models, which fails for the same number in another order.
        parameters = [parameter for parameter in run.model.parameters() if parameter.requires_grad]
    norm = process.clip_grad_norm_(parameters, run.recipe.optimizer.max_grad_norm)
    last_step = progress.last_step(stage, process.num_processes)
    factor = learning_rate_factor(stage, progress.stage_step, last_step)
    for group in optimizer.param_groups:
        group["lr"] = group["lr_scale"] * stage.learning_rate * factor
    if gradients_are_finite(norm):
        progress.skipped_in_a_row = 0
        optimizer.step()
        update_averages(run)
    else:
        progress.skipped_steps += 1
        progress.skipped_in_a_row += 1
        if process.scaler is not None:
            process.scaler.update()  # fp16: the loss was scaled too far
    optimizer.zero_grad(set_to_none=True)
    progress.count_step(stage, process.num_processes)
    if progress.skipped_in_a_row >= run.options.max_skipped_steps:
        raise FloatingPointError(
            f"{progress.skipped_in_a_row} consecutive steps had gradients that are not finite (stage {stage.name!r}, "
            f"step {progress.stage_step}). Lower `learning_rate`, or train with --mixed_precision no or bf16."
        )


def gradients_are_finite(norm: torch.Tensor | float | None) -> bool:
    """Return whether the norm of all gradients, which is the same on all processes, is finite."""
    if isinstance(norm, DTensor):
        norm = norm.full_tensor()
    return norm is None or bool(torch.isfinite(torch.as_tensor(norm)))
