# SPDX-License-Identifier: Apache-2.0
"""Between whole tensors and the shards that FSDP leaves on each process."""

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
    """The whole tensor on the CPU, detached; call this on every process, since shards are gathered."""
    tensor = tensor.detach()
    if isinstance(tensor, DTensor):
        tensor = tensor.full_tensor()
    return tensor.cpu().contiguous()


def laid_out_like(tensor: torch.Tensor, parameter: torch.Tensor) -> torch.Tensor:
    """A copy of a whole tensor that lies as `parameter` does: device, order in memory, and this process' shard.

    Fused optimizers walk through parameters and moments in memory order, so that both have to agree in it. Tensors of
    another shape, such as step counters, are only moved.
    """
    tensor = tensor.to(parameter.device)
    if tensor.shape != parameter.shape:
        return tensor.clone()
    if isinstance(parameter, DTensor):
        return distribute_tensor(tensor, parameter.device_mesh, parameter.placements)
    return torch.empty_like(parameter, dtype=tensor.dtype, requires_grad=False).copy_(tensor)


def part_here(tensor: torch.Tensor) -> torch.Tensor:
    """This process' part of a tensor as a plain one in the same memory: its shard, or all of it where it is whole.

    It is detached, and says as the tensor does whether it learns.
    """
    if not isinstance(tensor, DTensor):
        return tensor
    return tensor.to_local().detach().requires_grad_(tensor.requires_grad)


def gathered_like(part: torch.Tensor, parameter: torch.Tensor) -> torch.Tensor:
    """The whole CPU tensor of which `part` is what this process has, split as `parameter` is; call it everywhere."""
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
    """Let go of weights that FSDP keeps whole for a backward pass; of use after a forward pass that has none.

    Until then the model's parameters are the whole ones, and what is written into the shards is not seen.
    """
    for module in model.modules():
        if isinstance(module, FSDPModule):
            module.reshard()


def whole_state(module: torch.nn.Module) -> dict[str, torch.Tensor]:
    """The state dict of a module in whole CPU tensors, the same on every process."""
    return {name: whole(value) for name, value in module.state_dict().items()}


def check_supported(accelerator: Accelerator, rows: Sequence[LevelConfig] = ()) -> None:
    """Refuse ways of sharding for which stages, averages and checkpoints would not be exact.

    Args:
        accelerator: says how is sharded.
        rows: levels of the model that is to be trained.

    Raises:
        ValueError: for FSDP 1, for FSDP on CPU cores, which accelerate passes over in silence, for FSDP of levels that
            share layers, and for DeepSpeed.
    """
    if parse_flag_from_env("ACCELERATE_USE_FSDP") and accelerator.state.distributed_type != DistributedType.FSDP:
        raise ValueError(
            "The accelerate config asks for FSDP, but accelerate shards on GPUs alone: here "
            f"({accelerator.state.distributed_type.value}) every process would hold the whole model. On CPU cores use "
            "training/accelerate/ddp_cpu.yaml."
        )
    fsdp = getattr(accelerator.state, "fsdp_plugin", None)
    if fsdp is not None and fsdp.fsdp_version != 2:
        raise ValueError(
            "FSDP 1 flattens parameters, so that averages and growth cannot find them; set `fsdp_version: 2` in the "
            "accelerate config (see training/accelerate/fsdp.yaml)."
        )
    if fsdp is not None and any(row.share_time_embedding or row.share_blocks for row in rows):
        raise ValueError(
            "Levels of this model share layers (`share_time_embedding`, `share_blocks`). FSDP keeps a layer whole "
            "only while the level that it belongs to runs, and not when another level runs it; train without FSDP, "
            "every process with the whole model, or leave the sharing out."
        )
    if getattr(accelerator.state, "deepspeed_plugin", None) is not None:
        raise ValueError(
            "DeepSpeed steps inside its backward pass and keeps the optimizer's state without names, so that bad "
            "steps could not be skipped and stages not grown; shard with FSDP 2 instead: "
            "training/accelerate/fsdp_zero2.yaml (as ZeRO stage 2) or fsdp.yaml (as stage 3)."
        )


def plain_copy(module: torch.nn.Module) -> torch.nn.Module:
    """A sharded model as an ordinary one with the same config, adapters and whole weights; call it on every process.

    FSDP gives wrapped modules a class of its own, so the one to build is found below it.
    """
    state = whole_state(module)
    cls: Any = next(base for base in type(module).__mro__ if not issubclass(base, FSDPModule))
    config = cast(Any, module).config
    copy = cls.from_config(config) if isinstance(module, ConfigMixin) else cls(config)
    for name, adapter in getattr(module, "peft_config", {}).items():
        copy.add_adapter(adapter, adapter_name=name)
    copy.load_state_dict(state)
    return cast(torch.nn.Module, copy)
