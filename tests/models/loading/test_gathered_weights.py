# SPDX-License-Identifier: Apache-2.0
"""Models whose weights are offloaded or spread draw, open and grow as they do in memory."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from accelerate import cpu_offload, disk_offload, init_empty_weights
from peft import LoraConfig

from diffusers_mdm import LevelConfig, NestedUNetModel
from diffusers_mdm.models.loading.gathered_weights import common_device, gathered_state_dict
from tests.group_offloading import needs_group_offloading
from tests.models.tiny_models import randomize, two_level_config

ROW = LevelConfig((8, 16), (1, 1), (0, 0), norm_num_groups=4)
CPU = torch.device("cpu")


def on_disk(model: NestedUNetModel, folder: Any) -> NestedUNetModel:
    return disk_offload(model, str(folder / "weights"), execution_device=CPU)


def in_memory(model: NestedUNetModel, folder: Any) -> NestedUNetModel:
    return cpu_offload(model, execution_device=CPU)


def outer_level_on_disk(model: NestedUNetModel, folder: Any) -> NestedUNetModel:
    model.save_pretrained(folder / "saved")
    places: dict[str, Any] = {name: "cpu" for name, _ in model.named_children() if name != "levels"}
    places |= {"levels.0": "cpu", "levels.1": "disk"}
    return NestedUNetModel.from_pretrained(
        folder / "saved", device_map=places, offload_folder=str(folder / "weights")
    ).eval()


OFFLOADS = [in_memory, pytest.param(on_disk, marks=pytest.mark.slow), outer_level_on_disk]


@torch.no_grad()
@pytest.mark.parametrize("offload", OFFLOADS)
def test_an_offloaded_model_predicts_the_same(model, inputs, tmp_path, offload: Callable[..., NestedUNetModel]):
    expected = model(**inputs).sample
    offloaded = offload(model, tmp_path)
    assert any(parameter.is_meta for parameter in offloaded.parameters())
    torch.testing.assert_close(offloaded(**inputs).sample, expected, rtol=0, atol=1e-5)


@torch.no_grad()
@pytest.mark.parametrize("offload", OFFLOADS)
def test_an_offloaded_model_opens_and_grows(model, inputs, tmp_path, offload: Callable[..., NestedUNetModel]):
    weights = {name: value.clone() for name, value in model.state_dict().items()}
    offloaded = offload(model, tmp_path)
    for other in (offloaded.inner_model(1), offloaded.inner_model(2), offloaded.add_level(ROW)):
        assert {parameter.device.type for parameter in other.parameters()} == {"cpu"}
        kept = {name: value for name, value in other.state_dict().items() if name in weights}
        torch.testing.assert_close(kept, {name: weights[name] for name in kept}, rtol=0, atol=0)


@torch.no_grad()
def test_offloaded_levels_stop_sharing(config, tmp_path):
    sharing = {"block_out_channels": ((32, 32), (32, 32)), "share_blocks": (False, True)}
    model = randomize(NestedUNetModel(**{**config, **sharing}))
    expected = model.without_sharing().state_dict()
    alone = on_disk(model, tmp_path).without_sharing()
    torch.testing.assert_close(dict(alone.state_dict()), dict(expected), rtol=0, atol=0)


def test_a_model_of_shapes_alone_gives_models_of_shapes():
    with init_empty_weights():
        model = NestedUNetModel(**two_level_config())
    state = gathered_state_dict(model)
    assert common_device(state) == torch.device("meta")
    for other in (model.inner_model(1), model.add_level(ROW)):
        assert {parameter.device.type for parameter in other.parameters()} == {"meta"}


def test_weights_in_several_places_meet_on_the_cpu():
    state = {"a": torch.empty(1), "b": torch.empty(1, device="meta")}
    assert common_device(state) == CPU


@torch.no_grad()
@needs_group_offloading
def test_weights_in_files_of_group_offloading_are_refused(model, tmp_path):
    model.enable_group_offload(
        CPU, offload_type="leaf_level", offload_to_disk_path=str(tmp_path), low_cpu_mem_usage=True
    )
    with pytest.raises(ValueError, match="load it again without group offloading"):
        model.inner_model(1)


@pytest.mark.parametrize(
    "make",
    [lambda model: model.inner_model(1), lambda model: model.without_sharing(), lambda model: model.add_level(ROW)],
    ids=["inner_model", "without_sharing", "add_level"],
)
@pytest.mark.parametrize("change", ["lora", "fused"])
def test_a_model_that_is_not_plain_is_refused(model, make, change):
    if change == "lora":
        model.add_adapter(LoraConfig(r=2, target_modules=["to_q", "to_out.0"]), "style")
    else:
        model.fuse_qkv_projections()
    with pytest.raises(ValueError, match=r"parameters are those of its config.*unload"):
        make(model)


def test_a_lora_of_the_outer_level_alone_does_not_keep_the_inner_ones_from_being_opened(model):
    model.add_adapter(LoraConfig(r=2, target_modules=r"levels\.1\..*to_q"), "style")
    assert model.inner_model(1).num_levels == 1
