# SPDX-License-Identifier: Apache-2.0
"""Conversion between whole tensors and the shards that FSDP keeps on each process."""

from collections.abc import Sequence
from typing import Any, cast

import torch
from accelerate import Accelerator
from accelerate.utils import DistributedType, parse_flag_from_env
from diffusers import ConfigMixin
from torch.distributed.fsdp import FSDPModule
from torch.distributed.tensor import DTensor, distribute_tensor

from ...models.level_config import LevelConfig


def whole(tensor: torch.Tensor) -> torch.Tensor:
    """Return the whole tensor on the CPU, detached; every process must call this, since shards are gathered."""
    tensor = tensor.detach()
    if isinstance(tensor, DTensor):
        tensor = tensor.full_tensor()
    return tensor.cpu().contiguous()


def laid_out_like(tensor: torch.Tensor, parameter: torch.Tensor) -> torch.Tensor:
    """Return a copy of a whole tensor with the device, memory format and sharding of `parameter`.

    Fused optimizers process parameters and moments in memory order, which must therefore agree. Tensors of other
    shapes, such as step counters, are only moved to the device.
    """
    tensor = tensor.to(parameter.device)
    if tensor.shape != parameter.shape:
        return tensor.clone()
    if isinstance(parameter, DTensor):
        return distribute_tensor(tensor, parameter.device_mesh, parameter.placements)
    return torch.empty_like(parameter, dtype=tensor.dtype, requires_grad=False).copy_(tensor)


def part_here(tensor: torch.Tensor) -> torch.Tensor:
    """Return this process's shard of a tensor, or all of a tensor that is not sharded, as a plain tensor in the same
    memory.

    It is detached, with the tensor's `requires_grad`.
    """
    if not isinstance(tensor, DTensor):
        return tensor
    return tensor.to_local().detach().requires_grad_(tensor.requires_grad)


def gathered_like(part: torch.Tensor, parameter: torch.Tensor) -> torch.Tensor:
    """Return the whole CPU tensor of which `part` is this process's shard, split like `parameter`; call it on every
    process.
    """
    if not isinstance(parameter, DTensor):
        return whole(part)
    sharded = DTensor.from_local(
        part.to(parameter.device),
        parameter.device_mesh,
        parameter.placements,
        shape=parameter.shape,
        stride=parameter.stride(),
    )
    return whole(sharded)


def reshard(model: torch.nn.Module) -> None:
    """Free the gathered weights that FSDP keeps for a backward pass, after a forward pass without one.

    Until then the model uses the gathered parameters, and writing to the shards has no effect.
    """
    for module in model.modules():
        if isinstance(module, FSDPModule):
            module.reshard()


def whole_state(module: torch.nn.Module) -> dict[str, torch.Tensor]:
    """Return the state dict of a module as whole CPU tensors, equal on all processes."""
    return {name: whole(value) for name, value in module.state_dict().items()}


def check_supported(accelerator: Accelerator, level_configs: Sequence[LevelConfig] = ()) -> None:
    """Check that the way of sharding is supported.

    Args:
        accelerator: the accelerator, which determines the sharding.
        level_configs: level configs of the model to train.

    Raises:
        ValueError: for FSDP 1, for FSDP on CPU cores, which accelerate silently ignores, for FSDP with levels that
            share layers, and for DeepSpeed.
    """
    if parse_flag_from_env("ACCELERATE_USE_FSDP") and accelerator.state.distributed_type != DistributedType.FSDP:
        raise ValueError(
            "The accelerate config asks for FSDP, but accelerate only shards on GPUs: here "
            f"({accelerator.state.distributed_type.value}) every process would hold the whole model. On CPU cores use "
            "training/accelerate/ddp_cpu.yaml."
        )
    fsdp = getattr(accelerator.state, "fsdp_plugin", None)
    if fsdp is not None and fsdp.fsdp_version != 2:
        raise ValueError(
            "FSDP 1 flattens parameters, so averages and added levels cannot find them; set `fsdp_version: 2` in the "
            "accelerate config (see training/accelerate/fsdp.yaml)."
        )
    if fsdp is not None and any(level.share_time_embedding or level.share_blocks for level in level_configs):
        raise ValueError(
            "Levels of this model share layers (`share_time_embedding`, `share_blocks`). FSDP gathers a layer only "
            "while the level that it belongs to runs, not when another level uses it; train without FSDP, with the "
            "whole model in every process, or turn the sharing off."
        )
    if getattr(accelerator.state, "deepspeed_plugin", None) is not None:
        raise ValueError(
            "DeepSpeed steps inside its backward pass and keeps the optimizer's state without names, so bad steps "
            "could not be skipped and levels not be added; use FSDP 2 instead: "
            "training/accelerate/fsdp_zero2.yaml (as ZeRO stage 2) or fsdp.yaml (as stage 3)."
        )


def plain_copy(module: torch.nn.Module) -> torch.nn.Module:
    """Return a sharded model as an ordinary one with the same config, adapters and weights; call it on every process.

    FSDP replaces the class of modules by a subclass, so the original class is found among its bases.
    """
    state = whole_state(module)
    cls: Any = next(base for base in type(module).__mro__ if not issubclass(base, FSDPModule))
    config = cast(Any, module).config
    copy = cls.from_config(config) if isinstance(module, ConfigMixin) else cls(config)
    for name, adapter in getattr(module, "peft_config", {}).items():
        copy.add_adapter(adapter, adapter_name=name)
    copy.load_state_dict(state)
    return cast(torch.nn.Module, copy)
