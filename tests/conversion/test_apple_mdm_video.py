# SPDX-License-Identifier: Apache-2.0
"""Video checkpoints of the published code: their configs, their weights there and back, what it cannot express."""

import copy
import dataclasses

import pytest
import torch
import yaml as yaml_text

from diffusers_mdm import LevelConfig, NestedUNetModel
from diffusers_mdm.conversion.apple_mdm import (
    ROTARY_TABLE,
    UNUSED_FILE,
    convert_apple_checkpoint,
    read_converted,
    rotary_tables,
    to_apple_state_dict,
)
from diffusers_mdm.conversion.apple_mdm_config import check_published_frames, map_apple_config, read_apple_config
from diffusers_mdm.conversion.write_pipeline import same_bits, write_model
from tests.conversion.recorded_models import checkpoint, config, contents

VIDEO = "nested_unet_video"


def recorded_yaml() -> dict:
    return read_apple_config(config(VIDEO))


def wrapped(**outermost) -> dict:
    """The recorded config inside a further level."""
    yaml = recorded_yaml()
    outer = {**copy.deepcopy(yaml["unet_config"]), "inner_config": yaml["unet_config"], **outermost}
    return {**yaml, "unet_config": outer, "sample_image_size": 64}


def text_weights(num_levels: int) -> dict[str, torch.Tensor]:
    prefix = "inner_unet." * (num_levels - 1)
    return {f"{prefix}lm_proj.weight": torch.zeros(24, 40), f"{prefix}cond_emb.weight": torch.zeros(64, 24)}


def rows_of(yaml: dict, num_levels: int) -> tuple[LevelConfig, ...]:
    unet_config, _ = map_apple_config(text_weights(num_levels), yaml)
    return NestedUNetModel(**unet_config).level_configs


def test_recorded_config():
    unet, scheduler = map_apple_config(contents(VIDEO)["state_dict"], recorded_yaml())
    assert unet["num_frames"] == (1, 4)
    assert unet["temporal_layers_per_block"] == (None, (1, 2, 0))
    assert unet["temporal_downsample"] == (False, True)
    assert unet["temporal_rotary"] == (False, True)
    # One frame is its own tile.
    assert unet["tiled_adapters"] is None
    assert unet["sample_size"] == scheduler["base_sample_size"] == 16


def test_frames_multiply_from_level_to_level():
    rows = rows_of(wrapped(), 3)
    assert [row.num_frames for row in rows] == [1, 4, 16]
    assert [row.tiled_adapters for row in rows] == [False, False, True]
    assert map_apple_config(text_weights(3), wrapped())[0]["sample_size"] == 16


def test_pixels_are_added_around_frames():
    spatial = {"temporal_spatial_ds": True, "num_temporal_attention_layers": None}
    yaml = wrapped(**spatial)
    yaml["sample_image_size"] = 128
    rows = rows_of(yaml, 3)
    assert [row.num_frames for row in rows] == [1, 4, 4]
    assert [row.temporal_downsample for row in rows] == [False, True, False]
    assert [row.ratio for row in rows[1:]] == [1, 4]
    assert map_apple_config(text_weights(3), yaml)[0]["sample_size"] == 16


@torch.no_grad()
@pytest.mark.parametrize(
    "outermost",
    [{}, pytest.param({"temporal_spatial_ds": True, "num_temporal_attention_layers": None}, marks=pytest.mark.slow)],
)
def test_models_of_three_levels_go_there_and_back(tmp_path, outermost):
    yaml = {**wrapped(**outermost), "sample_image_size": 128}
    unet_config, _ = map_apple_config(text_weights(3), yaml)
    unet = NestedUNetModel(**unet_config)
    foreign = to_apple_state_dict(unet.state_dict(), rotary_tables(unet))
    temporal_levels = 1 if outermost else 2
    # One layer after each of 2 + 3 residual layers at the finest resolution, two at the next.
    assert sum(name.endswith(ROTARY_TABLE) for name in foreign) == temporal_levels * (1 * 3 + 2 * 3)
    torch.save({"state_dict": foreign}, tmp_path / "vis_model.pth")
    (tmp_path / "config.yaml").write_text(yaml_text.safe_dump(yaml))
    converted = convert_apple_checkpoint(tmp_path / "vis_model.pth", tmp_path / "config.yaml")
    assert converted.unet.level_frames == ((1, 4, 4) if outermost else (1, 4, 16))
    for name, tensor in unet.state_dict().items():
        assert same_bits(converted.unet.state_dict()[name], tensor)
    back = to_apple_state_dict(converted.unet.state_dict(), converted.unused)
    assert back.keys() == foreign.keys()
    assert all(same_bits(back[name], tensor) for name, tensor in foreign.items())


@pytest.mark.parametrize("keep_tables", [True, False])
def test_saved_model_goes_back_with_its_rotary_tables(tmp_path, keep_tables):
    """They are constants, so a model that was trained here, without a side file, has them too."""
    converted = convert_apple_checkpoint(checkpoint(VIDEO), config(VIDEO))
    assert converted.unused
    assert all(name.endswith(ROTARY_TABLE) for name in converted.unused)
    extra = {UNUSED_FILE: converted.unused} if keep_tables else {}
    write_model(tmp_path / "out", converted.unet, converted.scheduler, extra)
    unet, unused = read_converted(tmp_path / "out")
    back, foreign = to_apple_state_dict(unet.state_dict(), unused), contents(VIDEO)["state_dict"]
    assert back.keys() == foreign.keys()
    assert all(same_bits(back[name], tensor) for name, tensor in foreign.items())


def test_other_frequencies_are_refused(tmp_path):
    weights = dict(contents(VIDEO)["state_dict"])
    name = next(name for name in weights if name.endswith(ROTARY_TABLE))
    for table in (weights[name] * 2, torch.zeros(8)):
        torch.save({"state_dict": {**weights, name: table}}, tmp_path / "changed.pth")
        with pytest.raises(ValueError, match="does not hold the frequencies"):
            convert_apple_checkpoint(tmp_path / "changed.pth", config(VIDEO))


@pytest.mark.parametrize(
    ("outermost", "message"),
    [
        ({"temporal_mode": False}, "false around a video level"),
        ({"temporal_spatial_ds": True}, "temporal_spatial_ds and temporal attention"),
        (
            {
                "resolution_channels": [32, 32],
                "num_resnets_per_resolution": [1, 1],
                "num_attention_layers": [0, 0],
                "num_temporal_attention_layers": [1, 1],
            },
            "odd number",
        ),
    ],
)
def test_levels_that_the_published_code_cannot_run_are_refused(outermost, message):
    with pytest.raises(ValueError, match=message):
        map_apple_config(text_weights(3), wrapped(**outermost))


def test_frames_outside_pixels_have_no_published_counterpart():
    spatial = {"temporal_spatial_ds": True, "num_temporal_attention_layers": None}
    yaml = wrapped(**spatial)
    yaml["unet_config"] = {**copy.deepcopy(recorded_yaml()["unet_config"]), "inner_config": yaml["unet_config"]}
    with pytest.raises(ValueError, match="the levels inside do not match"):
        map_apple_config(text_weights(4), yaml)


def test_models_that_the_published_code_lacks_do_not_go_back():
    image, video = rows_of(recorded_yaml(), 2)
    untiled = dataclasses.replace(video, num_frames=16)
    pixels = LevelConfig((32, 32), (1, 1), (0, 0), norm_num_groups=16, num_frames=4)
    for rows, message in (
        ((dataclasses.replace(image, num_frames=4),), "innermost and has several frames"),
        ((image, video, untiled), "process each frame separately"),
        ((image, video, pixels), "process each frame separately"),
        ((image, video, dataclasses.replace(pixels, tiled_adapters=True), untiled), "around a level that adds"),
        (
            (image, video, dataclasses.replace(pixels, temporal_layers_per_block=(1, 0), tiled_adapters=True)),
            "without temporal_downsample",
        ),
        ((image, dataclasses.replace(pixels, num_frames=2, temporal_downsample=True)), "not a square number"),
    ):
        with pytest.raises(ValueError, match=message):
            check_published_frames(rows)
    check_published_frames((image, video))


@torch.no_grad()
def test_shared_layers_are_copied_on_the_way_back(tmp_path):
    converted = convert_apple_checkpoint(checkpoint("nested_unet"), config("nested_unet"))
    inner = converted.unet.inner_model(1)
    row = dataclasses.replace(converted.unet.level_configs[1], share_time_embedding=True)
    shared = inner.add_level(row)
    write_model(tmp_path / "out", shared, converted.scheduler)
    unet, unused = read_converted(tmp_path / "out")
    back = to_apple_state_dict(unet.state_dict(), unused)
    assert back.keys() == contents("nested_unet")["state_dict"].keys()
    assert torch.equal(back["temb_layer1.weight"], back["inner_unet.temb_layer1.weight"])
