# SPDX-License-Identifier: Apache-2.0
"""Names, configs and schedulers of the community pipeline's layout (its numbers are in test_parity)."""

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file

from diffusers_mdm.conversion.community_mdm import (
    convert_community_checkpoint,
    map_community_config,
    number_attentions,
)
from tests.conversion.recorded_models import GOLDEN

COMMUNITY = GOLDEN / "community_unet"


@pytest.fixture
def folder(tmp_path):
    """A copy of the recorded model that a test may change."""
    return shutil.copytree(COMMUNITY, tmp_path / "unet", ignore=lambda *_: ["io.safetensors"])


def edit_config(folder, **changes) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, **changes}))


def test_attentions_get_running_numbers():
    names = [f"inner_unet.up_blocks.0.attentions.{j}.transformer_blocks.{b}.x" for j in range(2) for b in range(3)]
    numbered = number_attentions(
        {name: torch.zeros(1) for name in [*names, "up_blocks.0.attentions.1.transformer_blocks.0.x"]}
    )
    assert list(numbered) == [
        *(f"inner_unet.up_blocks.0.attentions.{number}.x" for number in range(6)),
        "up_blocks.0.attentions.1.x",
    ]


def test_config_is_ours():
    config = convert_community_checkpoint(COMMUNITY).unet.config
    assert config["block_out_channels"] == ((32, 64),)
    assert config["attention_layers_per_block"] == ((0, 2),)
    assert (config["has_mid_block"], config["has_attention_ffn"]) == ((True,), (True,))
    assert (config["encoder_hid_dim"], config["cross_attention_dim"], config["time_embed_dim"]) == (16, 16, 128)
    assert config["sample_size"] == 16


def test_pipeline_folder_and_its_scheduler(folder):
    (folder.parent / "scheduler").mkdir()
    settings = {"prediction_type": "epsilon", "thresholding": True, "clip_sample": False, "variance_type": "fixed"}
    (folder.parent / "scheduler" / "scheduler_config.json").write_text(json.dumps(settings))
    scheduler = convert_community_checkpoint(folder.parent, shift_power=2).scheduler.config
    assert (scheduler["prediction_type"], scheduler["thresholding"]) == ("epsilon", True)
    assert (scheduler["shift_power"], scheduler["base_sample_size"]) == (2, 16)
    assert (scheduler["beta_schedule"], scheduler["timestep_spacing"]) == ("squaredcos_cap_v2", "matryoshka")


def test_sharded_weights(folder):
    weights = load_file(folder / "diffusion_pytorch_model.safetensors")
    names = sorted(weights)
    halves = {"a.safetensors": names[:50], "b.safetensors": names[50:]}
    for file, part in halves.items():
        save_file({name: weights[name] for name in part}, folder / file)
    index = {"weight_map": {name: file for file, part in halves.items() for name in part}}
    (folder / "diffusion_pytorch_model.safetensors").unlink()
    (folder / "diffusion_pytorch_model.safetensors.index.json").write_text(json.dumps(index))
    whole = convert_community_checkpoint(COMMUNITY).unet.state_dict()
    assert all(torch.equal(t, whole[n]) for n, t in convert_community_checkpoint(folder).unet.state_dict().items())


def test_index_without_files_is_refused(folder):
    (folder / "diffusion_pytorch_model.safetensors.index.json").write_text('{"weight_map": ["a.safetensors"]}')
    with pytest.raises(ValueError, match="does not list the files"):
        convert_community_checkpoint(folder)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"_class_name": "UNet2DConditionModel"}, "expected MatryoshkaUNet2DConditionModel"),
        ({"temporal_mode": True}, "video"),
        ({"block_out_channels": [32, 96]}, "do not match"),
        ({"layers_per_block": 2}, "is missing"),
        ({"layers_per_block": 10**9}, "layers or more"),
        ({"transformer_layers_per_block": [0, 10**9]}, "layers or more"),
        ({"block_out_channels": [32, 32 * 10**9]}, "whole number of at most"),
        ({"block_out_channels": [32, 2**30]}, "layer of width"),
        ({"down_block_types": ["DownBlock2D"]}, "`down_block_types` has 1 entries"),
        ({"norm_num_groups": 0}, "`norm_num_groups` cannot be used"),
        ({"dropout": float("inf")}, "`dropout` cannot be used: expected a finite number"),
    ],
)
def test_configs_that_do_not_fit(folder, changes, message):
    edit_config(folder, **changes)
    with pytest.raises(ValueError, match=message):
        convert_community_checkpoint(folder)


def test_config_must_say_the_structure():
    with pytest.raises(ValueError, match="does not give `block_out_channels`"):
        map_community_config({}, {})


def test_damaged_and_missing_weights(folder):
    file = folder / "diffusion_pytorch_model.safetensors"
    file.write_bytes(file.read_bytes()[:1000])
    with pytest.raises(ValueError, match="damaged"):
        convert_community_checkpoint(folder)
    file.unlink()
    with pytest.raises(FileNotFoundError, match="only safetensors"):
        convert_community_checkpoint(folder)
