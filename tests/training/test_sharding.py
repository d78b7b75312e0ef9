# SPDX-License-Identifier: Apache-2.0
from types import SimpleNamespace

import pytest
import torch
import yaml
from tiny_run import RECIPES

from diffusers_mdm.training.sharding import check_supported, laid_out_like, whole

CONFIGS = sorted((RECIPES.parent / "accelerate").glob("*.yaml"))


def accelerator_with(**plugins: object) -> SimpleNamespace:
    """What `check_supported` looks at: making real plugins needs several processes, or packages that are refused."""
    return SimpleNamespace(state=SimpleNamespace(**plugins))


def test_ways_that_would_not_be_exact_are_refused_with_what_to_use():
    check_supported(accelerator_with())
    check_supported(accelerator_with(fsdp_plugin=SimpleNamespace(fsdp_version=2)))
    with pytest.raises(ValueError, match=r"fsdp_version: 2.*fsdp\.yaml"):
        check_supported(accelerator_with(fsdp_plugin=SimpleNamespace(fsdp_version=1)))
    with pytest.raises(ValueError, match=r"fsdp_zero2\.yaml"):
        check_supported(accelerator_with(deepspeed_plugin=object()))


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_shipped_configs_are_of_the_supported_kinds(path):
    config = yaml.safe_load(path.read_text())
    assert config["distributed_type"] in ("MULTI_GPU", "FSDP")
    assert ("fsdp_config" in config) == (config["distributed_type"] == "FSDP")
    assert config.get("fsdp_config", {}).get("fsdp_version", 2) == 2


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
