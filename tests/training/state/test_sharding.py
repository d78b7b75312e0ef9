# SPDX-License-Identifier: Apache-2.0
import dataclasses
from types import SimpleNamespace

import pytest
import torch
import yaml
from accelerate.utils import DistributedType

from diffusers_mdm import LevelConfig
from diffusers_mdm.training.state.sharding import (
    check_supported,
    laid_out_like,
    whole,
)
from tests.training.tiny_run import RECIPES

CONFIGS = sorted((RECIPES.parent / "accelerate").glob("*.yaml"))


def accelerator_with(kind: str = "FSDP", **plugins: object) -> SimpleNamespace:
    """What `check_supported` looks at: making real plugins needs several processes, or packages that are refused."""
    return SimpleNamespace(state=SimpleNamespace(distributed_type=DistributedType(kind), **plugins))


def test_ways_that_would_not_be_exact_are_refused_with_what_to_use():
    check_supported(accelerator_with())
    check_supported(accelerator_with(fsdp_plugin=SimpleNamespace(fsdp_version=2)))
    with pytest.raises(ValueError, match=r"fsdp_version: 2.*fsdp\.yaml"):
        check_supported(accelerator_with(fsdp_plugin=SimpleNamespace(fsdp_version=1)))
    with pytest.raises(ValueError, match=r"fsdp_zero2\.yaml"):
        check_supported(accelerator_with(deepspeed_plugin=object()))


def test_sharding_that_accelerate_leaves_out_is_refused_and_not_passed_over(monkeypatch):
    """What `accelerate launch` with an FSDP config and `use_cpu: true` tells the processes, and what they become."""
    check_supported(accelerator_with("MULTI_CPU"))
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    check_supported(accelerator_with("FSDP"))
    for kind in ("MULTI_CPU", "NO"):
        with pytest.raises(ValueError, match=r"whole model.*ddp_cpu\.yaml"):
            check_supported(accelerator_with(kind))


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_shipped_configs_are_of_the_supported_kinds(path):
    config = yaml.safe_load(path.read_text())
    assert config["distributed_type"] in ("MULTI_GPU", "FSDP")
    assert ("fsdp_config" in config) == (config["distributed_type"] == "FSDP")
    assert config.get("fsdp_config", {}).get("fsdp_version", 2) == 2
    # accelerate shards nothing on CPU cores.
    assert not (config.get("use_cpu") and config["distributed_type"] == "FSDP")


def test_tensors_come_whole_and_are_laid_out_as_their_parameter():
    parameter = torch.randn(4, 3, 2, 2, requires_grad=True)
    lying = torch.nn.Parameter(parameter.detach().to(memory_format=torch.channels_last))
    kept = whole(lying)
    assert kept.is_contiguous()
    assert not kept.requires_grad
    back = laid_out_like(kept, lying)
    assert back.stride() == lying.stride()
    assert torch.equal(back, parameter)
    back.zero_()
    assert kept.any()  # a copy
    assert laid_out_like(torch.tensor(3.0), lying).shape == ()


@pytest.mark.parametrize("field", ["share_time_embedding", "share_blocks"])
def test_levels_that_share_layers_are_not_sharded(field):
    """A shared layer would be whole only while the level that it belongs to runs."""
    inner = LevelConfig((8, 16), (1, 1), (0, 0), norm_num_groups=4)
    rows = (inner, dataclasses.replace(inner, **{field: True}))
    fsdp = SimpleNamespace(fsdp_version=2)
    with pytest.raises(ValueError, match=r"share layers .*FSDP gathers a layer only while"):
        check_supported(accelerator_with(fsdp_plugin=fsdp), rows)
    check_supported(accelerator_with(fsdp_plugin=fsdp), rows[:1])
    check_supported(accelerator_with("MULTI_GPU"), rows)
