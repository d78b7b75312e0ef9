# SPDX-License-Identifier: Apache-2.0
"""Reading the weights of a model from devices, memory or disk (if offloaded by accelerate's hooks)."""

from __future__ import annotations

import torch
from accelerate.utils import align_module_device
from torch import nn

from ...library_internals import group_offload_folder

StateDict = dict[str, torch.Tensor]


def gathered_state_dict(model: nn.Module) -> StateDict:
    """Return the state dict including the values of offloaded weights, which are on the CPU.

    For a model that is on `meta` without being offloaded (it has shapes and no values), `meta` tensors are returned.

    Raises:
        ValueError: the weights are in files of diffusers' group offloading, which cannot be read back.
    """
    if any(group_offload_folder(part) is not None for part in model.modules()):
        raise ValueError(
            "The weights of this model are in files of group offloading (`offload_to_disk_path`), from which no "
            "other model can be made; load it again without group offloading."
        )
    state = dict(model.state_dict())
    for name, part in model.named_modules():
        own = {key for key, value in part.state_dict().items() if "." not in key and value.is_meta}
        if own:
            # accelerate's hook loads the values of the module temporarily; without a hook there are none.
            with align_module_device(part):
                for key in own:
                    value = part.get_parameter(key).detach()
                    state[f"{name}.{key}"] = value if value.is_meta else value.cpu()
    return state


def common_device(state: StateDict) -> torch.device:
    """Return the device of all tensors; the CPU if they are on several devices."""
    devices = {value.device for value in state.values()}
    return devices.pop() if len(devices) == 1 else torch.device("cpu")
