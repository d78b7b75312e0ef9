# SPDX-License-Identifier: Apache-2.0
import functools
from types import SimpleNamespace

import pytest
import torch
import yaml
from accelerate.utils import DistributedType
from accelerate.utils.fsdp_utils import fsdp2_prepare_auto_wrap_policy
from torch.distributed.fsdp.wrap import size_based_auto_wrap_policy, transformer_auto_wrap_policy

from diffusers_mdm.models.weight_sharing import borrowed_names
from diffusers_mdm.training.state.sharding import (
    check_supported,
    laid_out_like,
    let_shared_layers_stand_alone,
    plain_copy,
    whole,
)
from tests.pipelines.tiny_pipeline import make_unet
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


SHARED = {"share_time_embedding": (False, True), "share_blocks": (False, True)}


def plugin_with(policy, names=("Level",)) -> SimpleNamespace:
    return SimpleNamespace(auto_wrap_policy=policy, transformer_cls_names_to_wrap=list(names) if names else None)


def test_shared_layers_become_units_of_their_own():
    unet, plugin = make_unet(**SHARED), plugin_with(transformer_auto_wrap_policy)
    owners = set(borrowed_names(unet).values())
    assert owners
    let_shared_layers_stand_alone(accelerator_with(fsdp_plugin=plugin), unet)
    is_unit = fsdp2_prepare_auto_wrap_policy(plugin, unet)
    assert {name for name, module in unet.named_modules() if is_unit(module)} == {"levels.0", "levels.1", *owners}
    # Between stages the model is a plain one again.
    assert "Shared" not in repr(plain_copy(unet))
    plugin.auto_wrap_policy = functools.partial(transformer_auto_wrap_policy, transformer_layer_cls=set())
    before = list(plugin.transformer_cls_names_to_wrap)
    again = make_unet(**SHARED)
    let_shared_layers_stand_alone(accelerator_with(fsdp_plugin=plugin), again)
    assert plugin.transformer_cls_names_to_wrap == before


def test_models_without_shared_layers_and_runs_without_units_stay_as_they_are():
    for unet, plugin in (
        (make_unet(), plugin_with(transformer_auto_wrap_policy)),
        (make_unet(**SHARED), plugin_with(None, names=None)),
    ):
        names = plugin.transformer_cls_names_to_wrap
        let_shared_layers_stand_alone(accelerator_with(fsdp_plugin=plugin), unet)
        let_shared_layers_stand_alone(accelerator_with(), unet)
        assert plugin.transformer_cls_names_to_wrap == names
        assert "Shared" not in repr(unet)


def test_units_by_size_are_refused_for_shared_layers():
    policy = functools.partial(size_based_auto_wrap_policy, min_num_params=100)
    let_shared_layers_stand_alone(accelerator_with(fsdp_plugin=plugin_with(policy)), make_unet())
    with pytest.raises(ValueError, match="TRANSFORMER_BASED_WRAP"):
        let_shared_layers_stand_alone(accelerator_with(fsdp_plugin=plugin_with(policy)), make_unet(**SHARED))
