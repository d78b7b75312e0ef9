# SPDX-License-Identifier: Apache-2.0
"""Beginning and ending a stage: levels, trained parameters, optimizer, averages, and accelerate's preparation of
modules.
"""

from collections.abc import Collection
from typing import Any, cast

import torch
from transformers import PreTrainedModel

from ...models.level import Level
from ...models.nested_unet import NestedUNetModel
from ...schedulers.scheduling_matryoshka import MatryoshkaScheduler
from ..modules.autoencoder import vae_dtype
from ..modules.conditioned_unet import ConditionedUNet
from ..modules.growth import grow_to
from ..optimizers.registry import new_optimizer
from ..recipe.clip_stages import stage_level_configs
from ..recipe.stage import StageRecipe
from ..seeds import derive_seed
from ..state.averages import grow_averages, lay_out_averages, whole_averages
from ..state.optimizer import optimizer_state_of, parameter_groups, take_optimizer_state, trained_parameters
from ..state.post_hoc.run_averages import whole_power_averages
from ..state.run import Run
from ..state.sharding import plain_copy


def begin_stage(run: Run, stage: StageRecipe) -> None:
    """Extend the model to the stage's levels, and create the optimizer with its state for existing parameters."""
    # The weights of a new level depend only on the seed, not on earlier random numbers, so that a resumed run has the
    # same.
    torch.manual_seed(derive_seed(run.options.seed, stage.seed, run.progress.stage_index))
    run.unet = grow_to(run.unet, stage_level_configs(run.recipe, stage))
    grow_averages(run)
    choose_trained(run, stage)
    place_modules(run)
    shift = run.shift_power if stage.shift_power is None else stage.shift_power
    run.scheduler = MatryoshkaScheduler.from_config(run.scheduler.config, shift_power=shift)
    prepare(run, stage)
    lay_out_averages(run, stage.ema_decay)


def choose_trained(run: Run, stage: StageRecipe) -> None:
    """Set which parameters are trained: all of the trained modules except frozen levels, or only adapters."""
    if run.text_encoder is not None:
        # Frozen levels must keep getting the text features with which they were trained.
        learns = "text_encoder" in run.trained_modules and stage.frozen_levels == 0
        run.text_encoder.requires_grad_(learns)
    if run.recipe.lora is None:
        freeze_levels(run.unet, stage.frozen_levels)
    if stage.frozen_levels and run.ema:
        # What is frozen should have its best weights, the averages.
        for module, average in run.ema.items():
            for name, parameter in run.averaged_parameters(module).items():
                if not parameter.requires_grad:
                    parameter.data.copy_(average.shadows[name])


def freeze_levels(unet: NestedUNetModel, frozen_levels: int) -> None:
    """Train all parameters, or with frozen levels only those of the levels around them.

    The adapter from outside into the frozen levels is frozen, too. That of a new level is zero, so that what the
    frozen levels predict stays as it was; trained, it would give them features that they never learnt to use.
    """
    into_frozen = f"levels.{frozen_levels}.encoder.in_adapter."
    for name, parameter in unet.named_parameters():
        parts = name.split(".")
        is_outer = parts[0] == "levels" and int(parts[1]) >= frozen_levels and not name.startswith(into_frozen)
        parameter.requires_grad_(frozen_levels == 0 or is_outer)
    for index, level in enumerate(cast("list[Level]", list(unet.levels))):
        level.encoder.is_closed = index == frozen_levels > 0 and is_zero(level.encoder.in_adapter)


def is_zero(layer: torch.nn.Module | None) -> bool:
    """Return whether all weights of a layer are zero; False without contents, as in an estimate of memory."""
    if layer is None:
        return False
    return not any(parameter.is_meta or bool(parameter.any()) for parameter in layer.parameters())


def checkpoint_levels(unet: NestedUNetModel, levels: Collection[int]) -> None:
    """Turn gradient checkpointing on in these levels, and off in all others."""
    if levels:
        unet.enable_gradient_checkpointing()
    for index, level in enumerate(unet.levels):
        for module in checkpointed_modules(level):
            module.gradient_checkpointing = index in levels


def checkpointed_modules(level: torch.nn.Module) -> list[Any]:
    """Return the modules of a level that can recompute their layers in the backward pass."""
    return [module for module in level.modules() if hasattr(module, "gradient_checkpointing")]


def place_modules(run: Run) -> None:
    """Move the modules to the run's device, each with its dtype and mode."""
    options, device = run.options, run.accelerator.device
    for module in (run.unet, run.text_encoder, run.vae):
        if module is not None:
            take_own_memory(module)
    # FSDP can only shard contiguous weights; these also work with images in channels_last.
    run.unet.to(device=device, memory_format=torch.contiguous_format if run.is_sharded else run.memory_format)
    if run.recipe.lora is not None:
        for parameter in run.unet.parameters():
            if not parameter.requires_grad:
                parameter.data = parameter.data.to(run.weight_dtype)
    if options.attention_backend is not None:
        run.unet.set_attention_backend(options.attention_backend)
    checkpoint_levels(run.unet, options.checkpointed_levels(run.unet.num_levels))
    if run.text_encoder is not None:
        trained = "text_encoder" in run.trained_modules
        run.text_encoder.to(device=device, dtype=torch.float32 if trained else run.weight_dtype)
        run.text_encoder.train(trained)
    if run.vae is not None:
        dtype = vae_dtype(run.weight_dtype, run.vae.config)
        # diffusers' own `to` would warn about dtypes that it keeps.
        torch.nn.Module.to(run.vae, device=device, dtype=dtype).to(memory_format=run.memory_format)
    if options.offload:
        for module in run.frozen_modules:
            torch.nn.Module.to(module, device="cpu")
    run.unet.train()


def take_own_memory(module: torch.nn.Module) -> None:
    """Copy weights into memory that torch allocates, with the same alignment for all runs.

    Loaded weights have the alignment that they have in the file. Libraries sum in a different order for memory with a
    different alignment, so a resumed run would differ from an uninterrupted one in the last digits.
    """
    for tensor in (*module.parameters(), *module.buffers()):
        tensor.data = tensor.data.clone()


def prepare(run: Run, stage: StageRecipe) -> None:
    """Create the optimizer, and let accelerate wrap it and the trained modules."""
    encoder = run.trained_modules.get("text_encoder")
    model = ConditionedUNet(
        run.unet,
        cast(PreTrainedModel | None, encoder),
        run.tokenizer,
        run.recipe.max_sequence_length,
        attach_extra_losses(run, stage) if run.extra_losses else None,
        is_compiled=run.options.torch_compile,
    )
    groups = parameter_groups(model, stage, run.recipe.text_encoder)
    optimizer = new_optimizer(model, groups, run.recipe.optimizer, stage.learning_rate, run.is_sharded)
    if run.options.torch_compile:
        run.unet.compile()
    run.model, run.optimizer = run.accelerator.prepare(model, optimizer)
    if run.optimizer_state is not None:
        take_optimizer_state(run.optimizer.optimizer, trained_parameters(run), run.optimizer_state)
        run.optimizer_state = None


def attach_extra_losses(run: Run, stage: StageRecipe) -> dict[str, torch.nn.Module]:
    """Attach the extra losses of a stage to the model; returns the layers that they train, by name."""
    run.stage_losses = {
        name: loss for name, loss in run.extra_losses.items() if loss.stages is None or stage.name in loss.stages
    }
    for loss in run.stage_losses.values():
        loss.attach(run.unet)
    return {name: module for name, module in run.extra_modules.items() if name in run.stage_losses}


def end_stage(run: Run, stage: StageRecipe) -> None:
    """Save the optimizer state for the next stage, undo accelerate's preparation, and advance the counters."""
    run.optimizer_state = optimizer_state_of(run)
    averages, power_averages = whole_averages(run), whole_power_averages(run)
    if run.is_sharded:
        unshard(run)
    for name, shadows in averages.items():
        run.ema[name].shadows, run.ema[name].followed = shadows, {}
    for module, by_width in power_averages.items():
        run.power_averages[module].shadows, run.power_averages[module].followed = by_width, {}
    for loss in run.stage_losses.values():
        loss.detach()
    run.stage_losses = {}
    run.accelerator.free_memory()
    run.model, run.optimizer = None, None
    run.progress.finish_stage(stage, run.accelerator.num_processes)


def unshard(run: Run) -> None:
    """Replace sharded modules by ordinary ones with the same weights."""
    run.unet = cast(NestedUNetModel, plain_copy(run.unet))
    if "text_encoder" in run.trained_modules:
        run.text_encoder = cast(PreTrainedModel, plain_copy(run.trained_modules["text_encoder"]))
