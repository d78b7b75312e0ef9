# SPDX-License-Identifier: Apache-2.0
"""Models get exactly the weights of their checkpoint, and absurd configs are refused before anything is built."""

import time

import pytest
import torch

from diffusers_mdm.conversion.apple_mdm import convert_apple_checkpoint
from diffusers_mdm.conversion.model_building import build_model, check_names_and_shapes, check_sizes, empty_model
from tests.conversion.recorded_models import checkpoint


@pytest.fixture(scope="module")
def converted():
    unet = convert_apple_checkpoint(checkpoint("nested_unet")).unet
    return dict(unet.config), dict(unet.state_dict())


def test_weights_are_the_given_ones_in_their_own_dtype(converted):
    config, weights = converted
    unet = build_model(config, {name: tensor.half() for name, tensor in weights.items()})
    assert not unet.training
    assert all(torch.equal(tensor, weights[name].half()) for name, tensor in unet.state_dict().items())


def test_empty_models_take_no_memory(converted):
    assert {parameter.device.type for parameter in empty_model(converted[0]).parameters()} == {"meta"}


def test_what_does_not_fit_is_named(converted):
    config, weights = converted
    name = "levels.0.decoder.conv_out.bias"
    for changed, message in (
        ({key: tensor for key, tensor in weights.items() if key != name}, f"{name} is missing"),
        ({**weights, "stray": torch.zeros(1)}, "stray has no place"),
        ({**weights, name: torch.zeros(7)}, r"has shape \(7,\) but the config requires \(3,\)"),
    ):
        with pytest.raises(ValueError, match=message):
            check_names_and_shapes(empty_model(config), changed)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("layers_per_block", ((10**9, 1), (1, 1))),
        ("attention_layers_per_block", ((0, 10**9), (0, 0))),
        ("temporal_layers_per_block", (None, (10**9, 0))),
        ("micro_conditioning_keys", (("scale",) * 1000, ("scale",))),
        ("num_text_layers", 10**9),
        ("time_embed_dim", 10**9),
        ("time_embed_dim", 0),
        ("block_out_channels", ((16, 10**9), (16, 32))),
        ("block_out_channels", ((16, 0), (16, 32))),
    ],
)
def test_more_than_the_checkpoint_holds_is_refused_before_it_is_built(converted, key, value):
    config, weights = converted
    two = {"layers_per_block": ((1, 1), (1, 1)), "attention_layers_per_block": ((0, 1), (0, 0))}
    check_sizes({**config, **two}, weights)
    start = time.process_time()
    with pytest.raises(ValueError, match="The config describes"):
        build_model({**config, **two, key: value}, weights)
    assert time.process_time() - start < 5
