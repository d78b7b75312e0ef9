# SPDX-License-Identifier: Apache-2.0
"""One optimizer step: noise a batch at every level, predict, measure the error, and change the weights.

Whatever is drawn for an image or a clip comes from a generator of its own, seeded with the run, the stage and the
place in the stream. So a step does not depend on how its batch is dealt to processes and micro-batches, nor on a
restart.
"""

import contextlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple, cast

import torch
from torch.distributed.tensor import DTensor

from ...pyramid import Pyramid, pyramid_noise
from ..data.batch import Batch, replace_rows_by_empty
from ..loss.draws import offset_noise, row_timesteps
from ..loss.pyramid_loss import PyramidLoss, pyramid_loss, thin_rows
from ..loss.tables import loss_table
from ..loss.weights import ramped_level_weights
from ..modules.classes import check_class_labels
from ..recipe.clip_rows import data_of, joint_stage
from ..recipe.stage import StageRecipe
from ..seeds import derive_seed
from ..state.averages import update_averages
from ..state.optimizer import learning_rate_factor
from ..state.run import Run
from .clean_levels import clean_pyramid


@dataclass(frozen=True)
class NoisyBatch:
    """A batch that has been noised.

    Attributes:
        clean: levels (B_i, C, H_i, W_i), of clips (B_i, C, F_i, H_i, W_i), in [-1, 1] or of latents, innermost first.
        noise: the same shapes.
        timesteps: (B_0,).
        batch: with captions dropped and pixels flipped.
    """

    clean: Pyramid
    noise: Pyramid
    timesteps: torch.Tensor
    batch: Batch


def row_generators(run: Run, stage: StageRecipe, positions: torch.Tensor) -> list[torch.Generator]:
    """A CPU generator for every image or clip of a batch, seeded by its place in the stage's stream."""
    place = (run.options.seed, stage.seed, run.progress.stage_index)
    return [torch.Generator().manual_seed(derive_seed(*place, position)) for position in positions.tolist()]


def noise_batch(run: Run, stage: StageRecipe, batch: Batch) -> NoisyBatch:
    """Draw flips, dropped captions, t and noise for a batch (algorithm 1 of the paper, one t for all levels)."""
    device, num_train_timesteps = run.accelerator.device, len(run.scheduler)
    generators = row_generators(run, stage, batch.positions)
    chances = torch.stack([torch.rand(2, generator=generator) for generator in generators])
    timesteps = row_timesteps(stage, num_train_timesteps, generators, device)
    classes = run.unet.config["num_class_embeds"]
    check_class_labels(batch.class_labels, classes)
    null_class = None if classes is None else classes - 1  # as in the pipelines
    dropped = chances[:, 0] < stage.caption_dropout
    batch = replace_rows_by_empty(batch.to(device, non_blocking=True), dropped, null_class)
    if data_of(run.recipe, stage).random_flip:
        flips = (chances[:, 1] < 0.5).to(device).view(-1, *[1] * (batch.pixels.ndim - 1))  # all frames of a clip alike
        batch = replace(batch, pixels=torch.where(flips, batch.pixels.flip(-1), batch.pixels))
    if device.type != "cpu":
        # Large noise is drawn where it is needed, from generators that their own ones seed.
        seeds = [int(torch.randint(2**62, (), generator=generator)) for generator in generators]
        generators = [torch.Generator(device).manual_seed(seed) for seed in seeds]
    clean = thin_rows(clean_pyramid(run, stage, batch.pixels, generators), stage.rows_per_level)
    noise = pyramid_noise([level.shape for level in clean], generators, device=device)
    noise = offset_noise(noise, stage.noise_offset, generators)
    return NoisyBatch(clean, noise, timesteps, batch)


def predict(run: Run, noisy: Pyramid, timesteps: torch.Tensor, batch: Batch) -> Pyramid:
    """What the model makes of noisy levels: v of every level, in float32."""
    if run.model is None:
        raise RuntimeError("`begin_stage` has not prepared the model.")
    if run.recipe.channels_last:
        noisy = [level.contiguous(memory_format=torch.channels_last) if level.ndim == 4 else level for level in noisy]
    captions: list[str] | None = batch.captions
    embeds, mask = batch.prompt_embeds, batch.prompt_attention_mask
    if run.unet.config["cross_attention_dim"] is None:
        captions, embeds, mask = None, None, None
    elif embeds is not None:
        captions = None
    elif "text_encoder" not in run.trained_modules:
        with torch.no_grad(), run.accelerator.autocast():
            embeds, _, mask, _ = run.pipeline().encode_prompt(
                batch.captions,
                device=run.accelerator.device,
                do_classifier_free_guidance=False,
                max_sequence_length=run.recipe.max_sequence_length,
            )
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


def compute_loss(run: Run, stage: StageRecipe, batch: Batch) -> tuple[PyramidLoss, torch.Tensor]:
    """The loss of one micro-batch, and its table by level and quartile of t (see `loss_table`)."""
    drawn = noise_batch(run, stage, batch)
    scheduler = run.scheduler
    noisy = cast(Pyramid, scheduler.add_noise(drawn.clean, drawn.noise, drawn.timesteps))
    velocities = cast(Pyramid, scheduler.get_velocity(drawn.clean, drawn.noise, drawn.timesteps))
    predictions = predict(run, noisy, drawn.timesteps, drawn.batch)
    num_old_levels = run.recipe.stages[run.progress.stage_index - 1].levels if run.progress.stage_index else 0
    loss = pyramid_loss(
        predictions,
        velocities,
        scheduler.level_alphas_cumprod(drawn.clean, drawn.timesteps),
        ramped_level_weights(stage, num_old_levels, run.progress.stage_step),
        stage.loss_weighting,
        stage.snr_gamma,
        drawn.batch.row_weights,
    )
    return loss, loss_table(loss.row_errors, drawn.timesteps, len(scheduler))


class StepTables(NamedTuple):
    """Losses of one optimizer step on this process, by level and quartile of t; see `loss_table`.

    rows: of what the stage trains on.
    pictures: of the pictures beside its clips; None without.
    """

    rows: torch.Tensor
    pictures: torch.Tensor | None = None


def optimizer_step(
    run: Run, stage: StageRecipe, batches: Sequence[Batch], pictures: Sequence[Batch] = ()
) -> StepTables:
    """Accumulate the gradients of the micro-batches, change the weights, and count.

    Args:
        run: in the stage.
        stage: that is trained.
        batches: its micro-batches.
        pictures: the `joint_pictures` of each of them. The loss is then the mean over clips and pictures alike.

    Raises:
        FloatingPointError: if `max_skipped_steps` steps in a row had gradients that are not finite.
    """
    process, tables, picture_tables = run.accelerator, [], []
    pictures_alone = joint_stage(run.recipe, stage)
    share = stage.batch_size / (stage.batch_size + stage.joint_pictures)
    for number, batch in enumerate(batches, start=1):
        if pictures_alone is not None:
            # First, because gradients are exchanged with a pass that has all parameters in it.
            with process.no_sync(run.model):
                loss, table = compute_loss(run, pictures_alone, pictures[number - 1])
                process.backward(loss.total * ((1 - share) / len(batches)))
            picture_tables.append(table)
        # Processes exchange their gradients once a step, with the last micro-batch.
        is_last = number == len(batches)
        with contextlib.nullcontext() if is_last else process.no_sync(run.model):
            loss, table = compute_loss(run, stage, batch)
            process.backward(loss.total * share / len(batches))
        tables.append(table)
    update_weights(run, stage)
    return StepTables(torch.stack(tables).sum(0), torch.stack(picture_tables).sum(0) if picture_tables else None)


def update_weights(run: Run, stage: StageRecipe) -> None:
    """Clip, step and average; a step whose gradients are not finite changes nothing and is counted."""
    progress, optimizer, process = run.progress, run.optimizer, run.accelerator
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
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
            f"{progress.skipped_in_a_row} steps in a row had gradients that are not finite (stage {stage.name!r}, "
            f"step {progress.stage_step}). Lower `learning_rate`, or train with --mixed_precision no or bf16."
        )


def gradients_are_finite(norm: torch.Tensor | float | None) -> bool:
    """Whether the norm of all gradients, which every process knows, is a number."""
    if isinstance(norm, DTensor):
        norm = norm.full_tensor()
    return norm is None or bool(torch.isfinite(torch.as_tensor(norm)))
