# SPDX-License-Identifier: Apache-2.0
"""Names, shapes and the way back of published checkpoints."""

import json
import math

import pytest
import torch
from safetensors.torch import load_file

from diffusers_mdm import NestedUNetModel
from diffusers_mdm.conversion.apple_mdm import (
    TABLE,
    UNUSED_FILE,
    convert_apple_checkpoint,
    map_single_file_checkpoint,
    map_single_file_config,
    read_converted,
    read_single_file,
    to_apple_state_dict,
)
from diffusers_mdm.conversion.apple_mdm_config import map_apple_config, read_apple_config
from diffusers_mdm.conversion.model_building import build_model, check_names_and_shapes, empty_model
from diffusers_mdm.conversion.state_dict_table import inner_levels
from diffusers_mdm.conversion.write_pipeline import same_bits, write_model
from tests.conversion.recorded_models import APPLE_MODELS, GOLDEN, checkpoint, config, contents

FULLSIZE = json.loads((GOLDEN / "fullsize_state_dict_shapes.json").read_text())


def foreign(name: str) -> dict[str, torch.Tensor]:
    return dict(contents(name)["state_dict"])


def assert_same_tensors(found: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> None:
    assert found.keys() == expected.keys()
    assert all(same_bits(found[name], tensor) for name, tensor in expected.items())


# --- the released sizes, by name and shape ---


def published_config(size: str) -> dict:
    """The released model of this size, in ml-mdm's words."""

    def level(channels, layers, default, **extra):
        settings = {"skip_mid_blocks": True, "skip_cond_emb": True, "masked_cross_attention": 1, "temporal_dim": 1024}
        settings |= {"attention_levels": [], "num_attention_layers": [0, 0, 0], "conditioning_feature_proj_dim": -1}
        resnet = {"num_groups_norm": 32, "dropout": 0.0, "use_attention_ffn": False}
        settings |= {"resolution_channels": channels, "num_resnets_per_resolution": layers}
        return {**settings, "resnet_config": resnet, "micro_conditioning": f"scale:{default}", **extra}

    inner = level([256, 512, 768], [2, 2, 2], 64, attention_levels=[1, 2], num_attention_layers=[0, 1, 5])
    inner |= {"skip_mid_blocks": False, "skip_cond_emb": False, "masked_cross_attention": 0, "temporal_dim": None}
    inner["resnet_config"] = {**inner["resnet_config"], "use_attention_ffn": True}
    middle = level([64, 128, 256], [2, 2, 1], 256, inner_config=inner, skip_normalization=size != "1024x1024")
    outer = level([32, 32, 64], [2, 2, 1], 1024, inner_config=middle, skip_normalization=True)
    sampler = {"schedule_type": "DEEPFLOYD", "prediction_type": "V_PREDICTION", "schedule_shifted": size != "64x64"}
    return {
        "sample_image_size": int(size.split("x")[0]),
        "unet_config": {"64x64": inner, "256x256": middle, "1024x1024": outer}[size],
        "diffusion_config": {"sampler_config": sampler},
    }


@pytest.mark.parametrize("size", ["64x64", "256x256", "1024x1024"])
def test_released_sizes_map_name_by_name(size):
    recorded = FULLSIZE[f"cc12m_{size}"]
    weights = {name: torch.empty(shape, device="meta") for name, shape in recorded["state_dict"].items()}
    unet_config, scheduler_config = map_apple_config(weights, published_config(size))
    native, unused = TABLE.to_native(weights)
    check_names_and_shapes(empty_model(unet_config), native)
    assert not unused
    assert sum(math.prod(tensor.shape) for tensor in native.values()) == recorded["num_params"]
    back = TABLE.to_foreign(native)
    assert {name: list(tensor.shape) for name, tensor in back.items()} == recorded["state_dict"]
    assert unet_config["sample_size"] == scheduler_config["base_sample_size"] == 64
    assert (unet_config["encoder_hid_dim"], unet_config["cross_attention_dim"]) == (2048, 2048)


# --- there and back ---


@pytest.mark.parametrize("name", APPLE_MODELS)
def test_way_back_is_exact(name):
    converted = convert_apple_checkpoint(checkpoint(name), config(name))
    assert_same_tensors(to_apple_state_dict(converted.unet.state_dict(), converted.unused), foreign(name))


def test_weights_that_never_run_come_back_too(tmp_path):
    dead = {
        "mid_blocks.0.resnets.0.norm1.weight": torch.randn(32),
        "lm_proj.weight": torch.randn(24, 40),
        "cond_emb.weight": torch.randn(64, 24),
        "lm_head.0.attn.qkv.bias": torch.randn(72),
        "interp_layer1.weight": torch.randn(64, 16),
    }
    weights = {**foreign("nested_unet"), **dead}
    torch.save({"state_dict": weights, "batch_num": 1}, tmp_path / "vis_model.pth")
    converted = convert_apple_checkpoint(tmp_path / "vis_model.pth", config("nested_unet"))
    assert converted.unused.keys() == dead.keys()
    write_model(tmp_path / "out", converted.unet, converted.scheduler, {UNUSED_FILE: converted.unused})
    unet, unused = read_converted(tmp_path / "out")
    assert_same_tensors(to_apple_state_dict(unet.state_dict(), unused), weights)


def test_dead_names_are_alive_on_the_innermost_level():
    native, unused = TABLE.to_native(foreign("nested_unet"))
    assert not unused
    assert "levels.0.decoder.mid_block.resnets.0.norm1.weight" in native
    assert "encoder_hid_proj.weight" in native


def test_saved_model_goes_back_in_its_own_dtype(tmp_path):
    converted = convert_apple_checkpoint(checkpoint("nested_unet_attn"), config("nested_unet_attn"))
    write_model(tmp_path / "half", converted.unet.half(), converted.scheduler)
    unet, unused = read_converted(tmp_path / "half")
    expected = {name: tensor.half() for name, tensor in foreign("nested_unet_attn").items()}
    assert_same_tensors(to_apple_state_dict(unet.state_dict(), unused), expected)


def test_variants_in_one_folder_are_told_apart(tmp_path):
    converted = convert_apple_checkpoint(checkpoint("unet"))
    write_model(tmp_path / "model", converted.unet, converted.scheduler)
    half = convert_apple_checkpoint(checkpoint("unet")).unet.half()
    half.save_pretrained(tmp_path / "model" / "unet", variant="fp16", max_shard_size="1MB")
    assert len(list((tmp_path / "model" / "unet").glob("*.safetensors"))) > 2
    for variant, expected in ((None, converted.unet), ("fp16", half)):
        unet, _ = read_converted(tmp_path / "model", variant)
        assert_same_tensors(dict(unet.state_dict()), dict(expected.state_dict()))
    with pytest.raises(FileNotFoundError, match="'bf16'"):
        read_converted(tmp_path / "model", "bf16")


def test_damaged_weights_are_named(tmp_path):
    converted = convert_apple_checkpoint(checkpoint("unet"))
    write_model(tmp_path / "model", converted.unet, converted.scheduler)
    (file,) = (tmp_path / "model" / "unet").glob("*.safetensors")
    file.write_bytes(file.read_bytes()[:100])
    with pytest.raises(ValueError, match="is damaged"):
        read_converted(tmp_path / "model")


@pytest.mark.parametrize("as_pipeline", [True, False])
def test_folders_saved_before_a_column_existed_go_back(tmp_path, as_pipeline):
    converted = convert_apple_checkpoint(checkpoint("nested_unet"), config("nested_unet"))
    write_model(tmp_path / "old", converted.unet, converted.scheduler)
    folder = tmp_path / "old" / "unet"
    settings = json.loads((folder / "config.json").read_text())
    columns = {key for key, value in settings.items() if value is None}
    assert {"num_frames", "tiled_adapters", "share_blocks"} <= columns
    (folder / "config.json").write_text(json.dumps({k: v for k, v in settings.items() if k not in columns}))
    unet, unused = read_converted(tmp_path / "old" if as_pipeline else folder)
    assert_same_tensors(to_apple_state_dict(unet.state_dict(), unused), foreign("nested_unet"))
    loaded = NestedUNetModel.from_single_file(checkpoint("nested_unet"), config=folder)
    assert_same_tensors(dict(loaded.state_dict()), dict(converted.unet.state_dict()))


def test_parallel_training_prefix_is_dropped(tmp_path):
    torch.save({"state_dict": {f"module.{n}": t for n, t in foreign("unet").items()}}, tmp_path / "ddp.pth")
    converted = convert_apple_checkpoint(tmp_path / "ddp.pth", config("unet"))
    assert_same_tensors(to_apple_state_dict(converted.unet.state_dict(), {}), foreign("unet"))


def test_class_embeddings_have_no_place_there():
    native = convert_apple_checkpoint(checkpoint("unet")).unet.state_dict()
    with pytest.raises(ValueError, match=r"no place for 1 tensors: class_embedding\.weight"):
        to_apple_state_dict({**native, "class_embedding.weight": torch.zeros(2, 64)}, {})


def test_inner_levels_alone():
    converted = convert_apple_checkpoint(checkpoint("nested2_unet"), config("nested2_unet"), num_levels=1)
    assert converted.unet.num_levels == 1
    inner = inner_levels(foreign("nested2_unet"), 1)
    assert not any("inner_unet" in name for name in inner)
    assert_same_tensors(to_apple_state_dict(converted.unet.state_dict(), {}), inner)
    with pytest.raises(ValueError, match="has 3 levels, so 4 of them"):
        convert_apple_checkpoint(checkpoint("nested2_unet"), config("nested2_unet"), num_levels=4)


# --- checkpoints that do not fit ---


def change(tmp_path, edit) -> str:
    weights = foreign("nested_unet_attn")
    edit(weights)
    torch.save({"state_dict": weights}, tmp_path / "changed.pth")
    return tmp_path / "changed.pth"


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (lambda w: w.pop("inner_unet.conv_out.bias"), r"levels\.0\.decoder\.conv_out\.bias is missing"),
        (lambda w: w.pop("inner_unet.cond_emb.weight"), r"no inner_unet\.cond_emb\.weight"),
        (lambda w: w.update({"stray.weight": torch.zeros(1)}), r"1 unknown tensors: stray\.weight"),
        (lambda w: w.update({"conv_in.weight": torch.zeros(8, 3, 3, 3)}), r"shape \(8, 3, 3, 3\) but the config"),
        (lambda w: w.update({"down_blocks.1.attn.0.qkv.weight": torch.zeros(95, 32, 1, 1)}), "3 equal parts"),
        (lambda w: w.update({"down_blocks.1.attn.0.qkv.weight": torch.zeros(96, 32, 3, 3)}), "1x1 convolution"),
        (lambda w: w.update({"note": "text"}), "not tensors: note"),
        (lambda w: w.clear(), "no weights of a supported model"),
    ],
)
def test_changed_checkpoints_are_refused(tmp_path, edit, message):
    with pytest.raises(ValueError, match=message):
        convert_apple_checkpoint(change(tmp_path, edit), config("nested_unet_attn"))


def test_config_of_another_model_is_refused():
    with pytest.raises(ValueError, match=r"in the config file but .* in the arguments"):
        convert_apple_checkpoint(checkpoint("unet"), config("unet_options"))


def test_fused_part_that_is_missing_is_named():
    native, _ = TABLE.to_native(foreign("unet"))
    native.pop("levels.0.decoder.mid_block.attentions.0.attn.to_k.weight")
    with pytest.raises(ValueError, match=r"mid_blocks\.0\.attn\.0\.qkv\.weight cannot be assembled: .*to_k"):
        TABLE.to_foreign(native)


# --- one file at a time, as diffusers' from_single_file does ---


def test_single_file_maps_to_a_config():
    whole = read_single_file(checkpoint("nested_unet"))
    unet_config = map_single_file_config(read_apple_config(config("nested_unet")), whole)
    assert unet_config == map_single_file_config({}, whole)
    unet = build_model(unet_config, map_single_file_checkpoint(whole, unet_config))
    assert_same_tensors(to_apple_state_dict(unet.state_dict(), {}), foreign("nested_unet"))


def test_single_file_gives_a_smaller_config_its_inner_levels():
    inner = convert_apple_checkpoint(checkpoint("nested_unet"), num_levels=1).unet
    native = map_single_file_checkpoint(foreign("nested_unet"), inner.config)
    assert_same_tensors(native, inner.state_dict())


def test_single_file_refuses_a_config_that_does_not_fit():
    other = convert_apple_checkpoint(checkpoint("unet")).unet
    with pytest.raises(ValueError, match="do not match"):
        map_single_file_checkpoint(foreign("unet_options"), other.config)


def test_recorded_text_widths_are_read_from_shapes():
    # The pickled arguments say 24 for both: the trainer overwrote the width of the text encoder.
    converted = convert_apple_checkpoint(checkpoint("unet")).unet
    assert (converted.config["encoder_hid_dim"], converted.config["cross_attention_dim"]) == (40, 24)
    assert load_file(GOLDEN / "unet" / "io.safetensors")["lm_outputs"].shape[-1] == 40
