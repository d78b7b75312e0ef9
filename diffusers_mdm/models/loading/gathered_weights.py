# SPDX-License-Identifier: Apache-2.0
"""The weights of a model wherever they lie: on devices, in memory or on disk (offloaded by accelerate's hooks)."""

from __future__ import annotations

import torch
from accelerate.utils import align_module_device
from torch import nn

from ...library_internals import group_offload_folder

StateDict = dict[str, torch.Tensor]


def gathered_state_dict(model: nn.Module) -> StateDict:
    """The state dict with the values of offloaded weights, too; these are on the CPU.

    A model that is on `meta` without being offloaded (it has shapes and no values) gives its `meta` tensors.

    Raises:
        ValueError: the weights lie in files of diffusers' group offloading, which nothing can read back.
    """
    if any(group_offload_folder(part) is not None for part in model.modules()):
        raise ValueError(
            "The weights of this model lie in files of group offloading (`offload_to_disk_path`), from which no other "
            "model can be made; load it again without group offloading."
        )
    state = dict(model.state_dict())
    for name, part in model.named_modules():
        own = {key for key, value in part.state_dict().items() if "." not in key and value.is_meta}
        if own:
            # Accelerate's hook of the module fetches the values for a while; without a hook there are none to fetch.
            with align_module_device(part):
                for key in own:
                    value = part.get_parameter(key).detach()
                    state[f"{name}.{key}"] = value if value.is_meta else value.cpu()
    return state


def common_device(state: StateDict) -> torch.device:
    """Where all of the tensors are; the CPU if they are in several places."""
    devices = {value.device for value in state.values()}
    return devices.pop() if len(devices) == 1 else torch.device("cpu")
