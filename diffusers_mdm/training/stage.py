# SPDX-License-Identifier: Apache-2.0
"""One stage of training, from growing the model to its last step."""

import logging
import math
import time
from collections.abc import Callable
from typing import Any, cast

import torch
from diffusers.utils.logging import tqdm

from ..pipelines.pipeline_mdm import MDMPipeline
from ..pyramid import Pyramid, build_pyramid, pyramid_noise
from .averaging import new_average
from .data import CaptionedImages, ShuffledBatches, derive_seed, endless_batches, to_unit_range
from .growth import carry_optimizer_state, grow_ema, grow_model
from .loss import PyramidLoss, pyramid_loss, thin_rows
from .recipe import StageRecipe
from .run import Run

logger = logging.getLogger(__name__)


def train_stage(run: Run, stage: StageRecipe, images: CaptionedImages, on_checkpoint: Callable[[Run], None]) -> None:
    """Train `stage` from where `run.progress` says it is to its last step.

    `on_checkpoint` is called every `checkpointing_steps` steps and after the last one.

    Raises:
        FloatingPointError: if `max_skipped_steps` steps in a row had non-finite gradients.
    """
    begin_stage(run, stage)
    progress, process = run.progress, run.accelerator
    accumulation = stage.gradient_accumulation_steps
    order = ShuffledBatches(
        len(images),
        stage.batch_size,
        derive_seed(run.options.seed, stage.seed, progress.stage_index),
        start_batch=progress.stage_step * accumulation,
        rank=process.process_index,
        world=process.num_processes,
    )
    batches = endless_batches(images, order, run.options.dataloader_num_workers)
    model = cast(torch.nn.Module, torch.compile(run.unet)) if run.options.torch_compile else run.unet
    pipeline = run.pipeline()
    meter = Meter(run, stage)
    while progress.stage_step < stage.steps:
        losses = []
        for micro_step in range(accumulation):
            seed_step(run, stage, micro_step)
            loss = compute_loss(run, stage, model, pipeline, next(batches))
            process.backward(loss.total / accumulation)
            losses.append(loss)
        update_weights(run, stage)
        meter.record(losses)
        if progress.stage_step % run.options.checkpointing_steps == 0 or progress.stage_step == stage.steps:
            on_checkpoint(run)
    meter.close()
    end_stage(run)


def begin_stage(run: Run, stage: StageRecipe) -> None:
    """Grow the model to the stage's levels, and make the optimizer with what it knew about the old parameters."""
    device = run.accelerator.device
    layout = torch.channels_last if run.recipe.channels_last else torch.contiguous_format
    # A new level's weights depend on the seed alone, not on what was drawn before, so that a resumed run has the same.
    torch.manual_seed(derive_seed(run.options.seed, stage.seed, run.progress.stage_index))
    while run.unet.num_levels < stage.levels:
        run.unet = grow_model(run.unet, run.recipe.rows[run.unet.num_levels])
        if "unet" in run.ema:
            grow_ema(run.ema["unet"], run.unet)
    run.unet.to(device=device, memory_format=layout)
    if run.options.attention_backend is not None:
        run.unet.set_attention_backend(run.options.attention_backend)
    run.text_encoder.to(device)
    optimizer = run.recipe.optimizer
    for name, module in run.trained_modules.items():
        module.train()
        if name not in run.ema:
            run.ema[name] = new_average(module, stage.ema_decay)
        run.ema[name].decay = stage.ema_decay
        run.ema[name].to(device)
    run.optimizer = torch.optim.AdamW(
        parameter_groups(run),
        lr=stage.learning_rate,
        betas=(optimizer.adam_beta1, optimizer.adam_beta2),
        eps=optimizer.adam_epsilon,
        weight_decay=optimizer.adam_weight_decay,
        fused=True,
    )
    if run.saved_optimizer is not None:
        carry_optimizer_state(run.saved_optimizer, run.optimizer)
        run.saved_optimizer = None


def parameter_groups(run: Run) -> list[dict[str, Any]]:
    """What the optimizer trains: a group a module, and one for the token table, with its own learning rate.

    Each has a `name`, by which its state is carried into the next stage, and `lr_scale`, its learning rate over the
    stage's.
    """
    groups: list[dict[str, Any]] = []
    for name, module in run.trained_modules.items():
        parameters = list(module.parameters())
        if name == "text_encoder":
            tokens = run.text_encoder.get_input_embeddings().weight
            scale = run.recipe.text_encoder.token_learning_rate_scale
            groups.append({"name": f"{name}.tokens", "params": [tokens], "lr_scale": scale})
            parameters = [parameter for parameter in parameters if parameter is not tokens]
        groups.append({"name": name, "params": parameters, "lr_scale": 1.0})
    return groups


def end_stage(run: Run) -> None:
    """Keep the optimizer's state for the next stage and point the counters at it."""
    assert run.optimizer is not None
    run.saved_optimizer, run.optimizer = run.optimizer.state_dict(), None
    run.progress.stage_index += 1
    run.progress.stage_step = 0


def seed_step(run: Run, stage: StageRecipe, micro_step: int) -> None:
    """Seed the random stream of one forward pass from its place in the run, so that a resumed run draws the same."""
    progress = run.progress
    place = (progress.stage_index, progress.stage_step, micro_step, run.accelerator.process_index)
    torch.manual_seed(derive_seed(run.options.seed, stage.seed, *place))


def compute_loss(
    run: Run, stage: StageRecipe, model: torch.nn.Module, pipeline: MDMPipeline, batch: dict[str, Any]
) -> PyramidLoss:
    """Noise one batch at every level with one t per picture, predict v, and measure the error (algorithm 1)."""
    scheduler, device = run.scheduler, run.accelerator.device
    pixels = batch["pixels"].to(device, non_blocking=True)
    if run.recipe.data.random_flip:
        flipped = torch.rand(len(pixels), device=device) < 0.5
        pixels = torch.where(flipped[:, None, None, None], pixels.flip(-1), pixels)
    sides = run.unet.sample_sizes[: stage.levels]
    clean = thin_rows(build_pyramid(to_unit_range(pixels), sides), stage.rows_per_level)
    noise = pyramid_noise([level.shape for level in clean], device=device)
    timesteps = draw_timesteps(stage, scheduler.config.num_train_timesteps, len(pixels), device)
    noisy = scheduler.add_noise(clean, noise, timesteps)
    velocities = cast(Pyramid, scheduler.get_velocity(clean, noise, timesteps))
    if run.recipe.channels_last:
        noisy = [level.contiguous(memory_format=torch.channels_last) for level in noisy]
    captions = drop_captions(batch["captions"], stage.caption_dropout)
    with run.accelerator.autocast():
        text, _, mask, _ = pipeline.encode_prompt(captions, device=device, do_classifier_free_guidance=False)
        predictions = model(noisy, timesteps, encoder_hidden_states=text, encoder_attention_mask=mask).sample
    alphas = scheduler.level_alphas_cumprod(clean, timesteps)
    return pyramid_loss(predictions, velocities, alphas, stage.weights, stage.loss_weighting)


def draw_timesteps(stage: StageRecipe, num_train_timesteps: int, number: int, device: torch.device) -> torch.Tensor:
    """Draw t for each of `number` pictures, (number,) in [0, num_train_timesteps): evenly, or with the stage's bias.

    High t decide what is drawn, low t its finish; a bias spends the steps where the model still has to learn.
    """
    if stage.timestep_bias_strategy == "none":
        return torch.randint(0, num_train_timesteps, (number,), device=device)
    weights = torch.ones(num_train_timesteps, device=device)
    favoured = max(1, int(stage.timestep_bias_portion * num_train_timesteps))
    where = slice(favoured) if stage.timestep_bias_strategy == "earlier" else slice(-favoured, None)
    weights[where] *= stage.timestep_bias_multiplier
    return torch.multinomial(weights, number, replacement=True)


def drop_captions(captions: list[str], probability: float) -> list[str]:
    """Replace each caption by the empty one with `probability`; the model learns what to draw without a prompt."""
    dropped = (torch.rand(len(captions)) < probability).tolist()
    return ["" if drop else caption for caption, drop in zip(captions, dropped, strict=True)]


def update_weights(run: Run, stage: StageRecipe) -> None:
    """One optimizer step and its averages; a step whose gradients are not finite changes nothing and is counted."""
    progress, optimizer = run.progress, run.optimizer
    assert optimizer is not None
    parameters = [parameter for module in run.trained_modules.values() for parameter in module.parameters()]
    average_gradients(run, parameters)
    norm = torch.nn.utils.clip_grad_norm_(parameters, run.recipe.optimizer.max_grad_norm)
    for group in optimizer.param_groups:
        factor = learning_rate_factor(stage, progress.stage_step)
        group["lr"] = group["lr_scale"] * stage.learning_rate * factor
    if bool(torch.isfinite(norm)):
        progress.skipped_in_a_row = 0
        optimizer.step()
        for name, module in run.trained_modules.items():
            run.ema[name].step(module.parameters())
    else:
        progress.skipped_steps += 1
        progress.skipped_in_a_row += 1
    optimizer.zero_grad(set_to_none=True)
    progress.stage_step += 1
    progress.total_steps += 1
    progress.total_images += stage.images_per_step * run.accelerator.num_processes
    if progress.skipped_in_a_row >= run.options.max_skipped_steps:
        raise FloatingPointError(
            f"{progress.skipped_in_a_row} steps in a row had gradients that are not finite (stage {stage.name!r}, "
            f"step {progress.stage_step}). Lower `learning_rate`, or train with --mixed_precision no."
        )


def average_gradients(run: Run, parameters: list[torch.nn.Parameter]) -> None:
    """Replace the gradients by their mean over all processes, in one exchange.

    Text is encoded outside of any module that could be wrapped for this, so it is done here for all modules at once.
    """
    if run.accelerator.num_processes == 1:
        return
    gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
    flat = torch.cat([gradient.flatten() for gradient in gradients])
    flat = run.accelerator.reduce(flat, reduction="mean")
    for gradient, mean in zip(gradients, flat.split([gradient.numel() for gradient in gradients]), strict=True):
        gradient.copy_(mean.view_as(gradient))


def learning_rate_factor(stage: StageRecipe, step: int) -> float:
    """Share of the stage's learning rate at `step` (0-based): linear warm-up, then constant, linear or cosine to 0."""
    if step < stage.lr_warmup_steps:
        return (step + 1) / stage.lr_warmup_steps
    done = (step - stage.lr_warmup_steps) / max(1, stage.steps - stage.lr_warmup_steps)
    if stage.lr_scheduler == "linear":
        return 1.0 - done
    if stage.lr_scheduler == "cosine":
        return 0.5 * (1.0 + math.cos(math.pi * done))
    return 1.0


class Meter:
    """Progress bar, log lines and tracker entries of one stage: loss per level and images per second."""

    def __init__(self, run: Run, stage: StageRecipe):
        self.run, self.stage = run, stage
        self.bar = tqdm(
            total=stage.steps,
            initial=run.progress.stage_step,
            desc=stage.name,
            disable=not run.accelerator.is_local_main_process,
            mininterval=5,
        )
        self._restart()

    def _restart(self) -> None:
        self.sums: list[torch.Tensor] = []
        self.num_steps, self.since = 0, time.perf_counter()

    def record(self, losses: list[PyramidLoss]) -> None:
        """Take in the losses of one optimizer step; every `logging_steps` steps report their mean."""
        values = torch.stack([torch.stack(loss.per_level).detach() for loss in losses]).mean(0)
        self.sums.append(values)
        self.num_steps += 1
        self.bar.update()
        if self.num_steps == self.run.options.logging_steps or self.run.progress.stage_step == self.stage.steps:
            self._report()
            self._restart()

    def _report(self) -> None:
        run, stage = self.run, self.stage
        losses = torch.stack(self.sums).mean(0).tolist()
        images = self.num_steps * stage.images_per_step * run.accelerator.num_processes
        speed = images / (time.perf_counter() - self.since)
        values = {f"loss/level_{level}": loss for level, loss in enumerate(losses)}
        values["images_per_second"] = speed
        values["learning_rate"] = stage.learning_rate * learning_rate_factor(stage, run.progress.stage_step - 1)
        run.accelerator.log(values, step=run.progress.total_steps)
        spelled = " ".join(f"{loss:.4f}" for loss in losses)
        self.bar.set_postfix_str(f"loss {spelled}, {speed:.1f} images/s", refresh=False)
        logger.info(
            "%s step %d/%d, %d images: loss per level %s, %.1f images/s, lr %.2e",
            stage.name,
            run.progress.stage_step,
            stage.steps,
            run.progress.total_images,
            spelled,
            speed,
            values["learning_rate"],
        )

    def close(self) -> None:
        """Leave the bar as it is."""
        self.bar.close()
