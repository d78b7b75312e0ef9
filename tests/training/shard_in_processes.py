# SPDX-License-Identifier: Apache-2.0
"""Shard a model whose levels share layers over the processes, and compare its gradients with an unsharded one's.

torchrun --nproc_per_node 2 shard_in_processes.py; with the word "together" shared layers stay in their level's unit.
"""

import sys
from types import SimpleNamespace

import torch
import torch.distributed as dist
from accelerate.utils.fsdp_utils import fsdp2_prepare_auto_wrap_policy, get_module_children_bottom_up
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.distributed.fsdp.wrap import transformer_auto_wrap_policy

from diffusers_mdm.training.state.sharding import let_shared_layers_stand_alone, whole
from tests.pipelines.tiny_pipeline import TEXT_WIDTH, make_unet

SHARED = {"share_time_embedding": (False, True), "share_blocks": (False, True)}


def gradients(unet: torch.nn.Module) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    sample = [torch.randn(2, 3, side, side, generator=generator) for side in (8, 16)]
    text = torch.randn(2, 5, TEXT_WIDTH, generator=generator)
    for _ in range(2):  # the second step finds what the first one left
        unet.zero_grad()
        predictions = unet(sample, torch.tensor([3, 500]), encoder_hidden_states=text).sample
        sum((level**2).mean() for level in predictions).backward()
    return {name: whole(value.grad) for name, value in unet.named_parameters() if value.grad is not None}


def main(together: bool) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo")
    expected, unet = gradients(make_unet(**SHARED)), make_unet(**SHARED)
    plugin = SimpleNamespace(auto_wrap_policy=transformer_auto_wrap_policy, transformer_cls_names_to_wrap=["Level"])
    if not together:
        let_shared_layers_stand_alone(SimpleNamespace(state=SimpleNamespace(fsdp_plugin=plugin)), unet)
    mesh, is_unit = init_device_mesh("cpu", (2,)), fsdp2_prepare_auto_wrap_policy(plugin, unet)
    for module in get_module_children_bottom_up(unet)[:-1]:
        if is_unit(module):
            fully_shard(module, mesh=mesh)
    fully_shard(unet, mesh=mesh)
    found = gradients(unet)
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, atol=1e-5, rtol=1e-4, msg=name)
    print("sharded units:", sum(isinstance(module, FSDPModule) for module in unet.modules()))
    dist.destroy_process_group()


if __name__ == "__main__":
    main("together" in sys.argv[1:])
