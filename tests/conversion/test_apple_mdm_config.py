# SPDX-License-Identifier: Apache-2.0
"""Published configs, from YAML and from pickled arguments, become our configs."""

import copy
import functools
import math
import time

import pytest
import torch

from diffusers_mdm.conversion.apple_mdm import convert_apple_checkpoint, to_native_state_dict
from diffusers_mdm.conversion.apple_mdm_config import map_apple_config, read_apple_config
from diffusers_mdm.conversion.model_building import build_model
from diffusers_mdm.schedulers import MatryoshkaScheduler
from tests.conversion.recorded_models import APPLE_MODELS, config, contents


@functools.cache
def source(name: str) -> tuple[dict, dict, object]:
    """Weights, YAML and arguments of a recorded model, read once; tests must not change them."""
    return contents(name)["state_dict"], read_apple_config(config(name)), contents(name)["args"]


def edited(yaml: dict, path: str, value: object) -> dict:
    """A copy of a config with one entry replaced, or removed if the value is `...`."""
    yaml = copy.deepcopy(yaml)
    *parents, last = path.split(".")
    node = yaml
    for key in parents:
        node = node.setdefault(key, {})
    if value is ...:
        node.pop(last)
    else:
        node[last] = value
    return yaml


@pytest.mark.parametrize("name", APPLE_MODELS)
def test_yaml_and_arguments_say_the_same(name):
    weights, yaml, args = source(name)
    both = map_apple_config(weights, yaml, args)
    assert both == map_apple_config(weights, yaml, None)
    assert both == map_apple_config(weights, None, args)


def test_columns_of_three_levels():
    unet, scheduler = map_apple_config(*source("nested2_unet"))
    assert unet["block_out_channels"] == ((32, 32), (16, 16, 32), (8, 16, 24))
    assert unet["layers_per_block"] == ((1, 1), (1, 1, 1), (1, 2, 1))
    assert unet["attention_layers_per_block"] == ((1, 2), (0, 0, 0), (0, 0, 0))
    assert unet["has_mid_block"] == (True, False, False)
    assert unet["normalize_input"] == (False, True, False)
    assert unet["micro_conditioning_defaults"] == ((64.0,), (256.0,), (1024.0,))
    assert unet["sample_size"] == scheduler["base_sample_size"] == 6
    assert (scheduler["shift_power"], scheduler["level_scaling"]) == (2.0, "shift")
    assert (scheduler["timestep_spacing"], scheduler["beta_schedule"]) == ("matryoshka", "squaredcos_cap_v2")


def test_lists_may_be_text():
    weights, yaml, _ = source("unet")
    as_text = edited(yaml, "unet_config.resolution_channels", "16,64,32")
    as_text = edited(as_text, "unet_config.attention_levels", "1, 2")
    as_text = edited(as_text, "unet_config.num_resnets_per_resolution", "1")
    assert map_apple_config(weights, as_text) == map_apple_config(weights, yaml)


def test_arguments_fill_what_yaml_leaves_out():
    weights, yaml, args = source("unet")
    short = edited(yaml, "unet_config.num_attention_layers", ...)
    assert map_apple_config(weights, short, args) == map_apple_config(weights, yaml)
    with pytest.raises(ValueError, match=r"Neither .* contain `unet_config\.num_attention_layers`"):
        map_apple_config(weights, short)


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("unet_config.resolution_channels", [16, 64, 64]),
        ("unet_config.masked_cross_attention", 1),
        ("unet_config.micro_conditioning", "scale:128"),
        ("unet_config.resnet_config.num_groups_norm", 8),
        ("diffusion_config.sampler_config.prediction_type", "DDPM"),
        ("diffusion_config.model_output_scale", 2.0),
    ],
)
def test_contradictions_name_both_sides(path, value):
    weights, yaml, args = source("unet")
    with pytest.raises(ValueError, match=rf"`{path}` is .* in the config file but .* in the arguments"):
        map_apple_config(weights, edited(yaml, path, value), args)


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("unet_config.resnet_config.dropout", 0.2),  # training only
        ("diffusion_config.sampler_config.loss_target_type", "HA_STYLE"),  # training only, and no longer a member
        ("unet_config.conditioning_feature_dim", 4096),  # overwritten by the trainer
    ],
)
def test_what_does_not_change_the_output_may_differ(path, value):
    weights, yaml, args = source("unet")
    map_apple_config(weights, edited(yaml, path, value), args)


def test_switches_at_top_level_are_as_inactive_as_in_the_published_code():
    weights, yaml, args = source("nested_unet")
    changed = {**yaml, "mixed_ratio": "9:1", "multi_res_weights": "4:1", "schedule_type": "COSINE"}
    assert map_apple_config(weights, changed, args) == map_apple_config(weights, yaml, args)


SAMPLER = "diffusion_config.sampler_config."


@pytest.mark.parametrize(
    ("path", "value", "expected"),
    [
        (SAMPLER + "threshold_function", "NONE", {"clip_sample": False, "thresholding": False}),
        (SAMPLER + "threshold_function", "DYNAMIC", {"dynamic_thresholding_ratio": 0.995, "sample_max_value": 100.0}),
        (SAMPLER + "threshold_function", "dynamic_if", {"dynamic_thresholding_ratio": 0.95, "sample_max_value": 1.5}),
        (SAMPLER + "schedule_type", "DDPM", {"beta_schedule": "linear"}),
        (SAMPLER + "schedule_type", "COSINE", {"beta_schedule": "cosine_log_snr"}),
        (SAMPLER + "prediction_type", "DDIM", {"prediction_type": "epsilon"}),
        (SAMPLER + "schedule_shifted", False, {"level_scaling": "rescale"}),
        (SAMPLER + "schedule_shifted_power", 2, {"level_scaling": "shift", "shift_power": 2.0}),
    ],
)
def test_sampler_settings(path, value, expected):
    weights, yaml, _ = source("nested_unet")
    _, scheduler = map_apple_config(weights, edited(yaml, path, value))
    built = MatryoshkaScheduler(**scheduler).config
    assert {key: built[key] for key in expected} == expected


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        ("unet_config.inner_config.temporal_mode", True, "innermost level must be an image level"),
        ("unet_config.inner_config.skip_cond_emb", True, "the only one that receives the text"),
        ("unet_config.skip_inner_unet_input", True, "cannot run either"),
        ("unet_config.temporal_dim", 128, "all must be equal"),
        ("unet_config.num_resnets_per_resolution", [1, 1], "expected one for each of 3"),
        ("unet_config.resolution_channels", [16, "many"], "resolution_channels` cannot be used"),
        ("unet_config.micro_conditioning", "scale", "key:default"),
        ("unet_config.inner_config.resnet_config.num_groups_norm", 0, "at least 1"),
        ("unet_config.inner_config.masked_cross_attention", "no", "expected true or false"),
        (SAMPLER + "schedule_shifted_power", None, "finite number"),
        (SAMPLER + "num_diffusion_steps", 10**9, "at most 1000000"),
        ("sample_image_size", 30, "is not a multiple"),
        (SAMPLER + "schedule_type", "SIGMOID", "expected one of DEEPFLOYD"),
        (SAMPLER + "rescale_schedule", 2.0, "rescale_schedule` is above 1"),
        (SAMPLER + "rescale_signal", 0.5, "rescale_signal` is not 1"),
    ],
)
def test_impossible_configs_say_why(path, value, message):
    weights, yaml, _ = source("nested_unet")
    with pytest.raises(ValueError, match=message):
        map_apple_config(weights, edited(yaml, path, value))


def nested(times: int) -> list:
    """A value of 2^times numbers in as many lists."""
    value = [1]
    for _ in range(times):
        value = [value, value]
    return value


def endless() -> list:
    value: list = [1]
    value.append(value)
    return value


LISTS = ("resolution_channels", "num_resnets_per_resolution", "num_attention_layers", "attention_levels")
ABSURD = [10**9, 10**30, 10**5000, math.inf, math.nan, -1, nested(60), endless()]
ABSURD += [[10**9] * 3, [math.inf] * 3, "9" * 10**5]


def build(name: str, path: str, value: object, as_arguments: bool) -> None:
    """Convert a recorded model with one value of its config changed, in the config file or in the arguments."""
    weights, yaml, _ = source(name)
    changed = edited(yaml, path, value)
    config, _ = map_apple_config(weights, *((None, changed) if as_arguments else (changed, None)))
    build_model(config, to_native_state_dict(weights)[0])


@pytest.mark.parametrize("as_arguments", [False, True])
@pytest.mark.parametrize("key", [*LISTS, "num_lm_head_layers", "temporal_dim", "micro_conditioning"])
@pytest.mark.parametrize("value", ABSURD, ids=range(len(ABSURD)))
def test_absurd_sizes_cost_nothing(key, value, as_arguments):
    # Each of these would otherwise build layers, or text, until memory ends.
    start = time.process_time()
    if (key, value) == ("temporal_dim", -1):  # which means "not set"
        return
    if key == "attention_levels" and value in (10**9, [10**9] * 3):  # a resolution that the level does not have
        value = [1, 1, 1, -1]
    with pytest.raises(ValueError, match=r"cannot be used|describes|entries") as refusal:
        build("unet", f"unet_config.{key}", value, as_arguments)
    assert len(str(refusal.value)) < 1000
    assert time.process_time() - start < 10


@pytest.mark.parametrize("as_arguments", [False, True])
def test_config_inside_itself_ends(as_arguments):
    weights, yaml, _ = source("nested_unet")
    yaml = copy.deepcopy(yaml)
    yaml["unet_config"]["inner_config"] = yaml["unet_config"]
    with pytest.raises(ValueError, match="nests more than 16 levels"):
        map_apple_config(weights, *((None, yaml) if as_arguments else (yaml, None)))


def test_output_bound_belongs_to_single_levels():
    weights, yaml, _ = source("nested_unet")
    unet, _ = map_apple_config(weights, edited(yaml, "diffusion_config.model_output_scale", 1.5))
    assert unet["output_bound"] is None


def test_files_that_are_no_config(tmp_path):
    (tmp_path / "list.yaml").write_text("- 1\n")
    (tmp_path / "broken.yaml").write_text("a: [1\n")
    (tmp_path / "code.yaml").write_text("unet_config: !!python/object/apply:os.system ['true']\n")
    for name, message in {"list": "no mapping", "broken": "not a YAML", "code": "not a YAML"}.items():
        with pytest.raises(ValueError, match=message):
            read_apple_config(tmp_path / f"{name}.yaml")
    with pytest.raises(FileNotFoundError):
        read_apple_config(tmp_path / "none.yaml")


def test_checkpoint_without_arguments_needs_a_config(tmp_path):
    torch.save({"state_dict": source("unet")[0], "batch_num": 1}, tmp_path / "plain.pth")
    with pytest.raises(ValueError, match="pass its YAML"):
        convert_apple_checkpoint(tmp_path / "plain.pth")
    assert convert_apple_checkpoint(tmp_path / "plain.pth", config("unet")).unet.num_levels == 1
